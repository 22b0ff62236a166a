"""LangChain and LangGraph programs around one chat model; all but one know nothing of tracing."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy, Send
from openai import BadRequestError

import tracetune


class State(TypedDict):
    """What a graph hands from node to node."""

    texts: Annotated[list[str], operator.add]


class Messages(TypedDict):
    """The same, of an agent with tools."""

    messages: Annotated[list[Any], add_messages]


def chain(model: Any) -> Any:
    """A prompt, the model and a parser."""
    return ChatPromptTemplate.from_messages([("user", "{text}")]) | model | StrOutputParser()


def looped(model: Any, *, asynchronous: bool = False) -> Any:
    """A plan, two searches, an answer; the search is a chain."""

    def ask(state: State) -> State:
        return {"texts": [model.invoke(state["texts"][-1]).text]}

    async def ask_later(state: State) -> State:
        return {"texts": [(await model.ainvoke(state["texts"][-1])).text]}

    def search(state: State) -> State:
        return {"texts": [chain(model).invoke({"text": state["texts"][-1]})]}

    async def search_later(state: State) -> State:
        return {"texts": [await chain(model).ainvoke({"text": state["texts"][-1]})]}

    graph = StateGraph(State)
    graph.add_node("plan", ask_later if asynchronous else ask)
    graph.add_node("search", search_later if asynchronous else search)
    graph.add_node("answer", ask_later if asynchronous else ask)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "search")
    graph.add_conditional_edges("search", lambda state: "search" if len(state["texts"]) < 4 else "answer")
    graph.add_edge("answer", END)
    return graph.compile()


BEGINNING: State = {"texts": ["who?"]}


def invoke(model: Any) -> None:
    """The graph, as it is usually run."""
    looped(model).invoke(BEGINNING)


async def ainvoke(model: Any) -> None:
    """The same, async."""
    await looped(model, asynchronous=True).ainvoke(BEGINNING)


def stream(model: Any) -> None:
    """The graph's updates, read to the end."""
    list(looped(model).stream(BEGINNING))


def stream_left(model: Any) -> None:
    """The graph's updates, left after two nodes."""
    updates: Iterator[Any] = looped(model).stream(BEGINNING)
    next(updates)
    next(updates)
    updates.close()  # type: ignore[attr-defined]  # it is a generator


async def astream_left(model: Any) -> None:
    """The same, async."""
    updates: AsyncIterator[Any] = looped(model, asynchronous=True).astream(BEGINNING)
    await anext(updates)
    await anext(updates)
    await updates.aclose()  # type: ignore[attr-defined]  # as above


def tokens(model: Any) -> None:
    """A named chain, streamed to the end."""
    assert "".join(chain(model).with_config(run_name="tell").stream({"text": "who?"})) == "answer"


def tokens_left(model: Any) -> None:
    """A chain whose stream is left after its first token."""
    texts = chain(model).with_config(run_name="tell").stream({"text": "who?"})
    assert next(text for text in texts if text) == "an"
    texts.close()


async def atokens_left(model: Any) -> None:
    """The same, async."""
    texts = chain(model).with_config(run_name="tell").astream({"text": "who?"})
    assert [text async for text in texts if text][:1] == ["an"]
    texts = chain(model).with_config(run_name="tell").astream({"text": "who?"})
    assert await anext(texts) in ("", "an")
    await texts.aclose()


def batch(model: Any) -> None:
    """Two inputs at once."""
    chain(model).with_config(run_name="tell").batch([{"text": "who?"}, {"text": "what?"}])


def branches(model: Any) -> None:
    """A node of two branches, one of them a chain with a name of its own."""
    both = RunnableParallel(left=chain(model), right=chain(model).with_config(run_name="judge"))
    (both | RunnableLambda(str)).with_config(run_name="think").invoke({"text": "who?"})


def assigned(model: Any) -> None:
    """What one branch gives beside what passes through."""
    RunnablePassthrough.assign(said=chain(model)).invoke({"text": "who?"})


def retried_chain(model: Any) -> None:
    """A chain that fails after its first call, and is tried again."""
    answers = iter([ValueError("no"), "yes"])

    def parse(_: Any) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    (model | RunnableLambda(parse)).with_config(run_name="tell").with_retry(wait_exponential_jitter=False).invoke(
        "who?"
    )


def retried_node(model: Any) -> None:
    """A node that fails after its first call, and is run again by the graph."""
    failures = iter([True, False])

    def tell(state: State) -> State:
        text = model.invoke(state["texts"][-1]).text
        if next(failures):
            raise ConnectionError("lost")
        return {"texts": [text]}

    graph = StateGraph(State)
    graph.add_node("tell", tell, retry_policy=RetryPolicy(initial_interval=0.001, jitter=False))
    graph.add_edge(START, "tell")
    graph.compile().invoke(BEGINNING)


def subgraph(model: Any) -> None:
    """A node that is a graph, whose node has the same name."""
    inner = StateGraph(State)
    inner.add_node("tell", lambda state: {"texts": [model.invoke(state["texts"][-1]).text]})
    inner.add_node("judge", lambda state: {"texts": [model.invoke(state["texts"][-1]).text]})
    inner.add_edge(START, "tell")
    inner.add_edge("tell", "judge")
    outer = StateGraph(State)
    outer.add_node("tell", inner.compile())
    outer.add_edge(START, "tell")
    outer.compile().invoke(BEGINNING)


def fan(model: Any) -> None:
    """A step that sends work to one node twice, at once."""
    graph = StateGraph(State)
    graph.add_node("part", lambda text: None)
    graph.add_node("tell", lambda state: {"texts": [model.invoke(state["texts"][-1]).text]})
    graph.add_edge(START, "part")
    graph.add_conditional_edges("part", lambda _: [Send("tell", {"texts": [text]}) for text in ("a", "b")])
    graph.compile().invoke(BEGINNING)


def agent(model: Any) -> None:
    """A node that calls a tool, and the tool, which asks the model itself."""

    @tool
    def search(query: str) -> str:
        """Search for something."""
        return str(model.invoke(query).text)

    def act(state: Messages) -> Messages:
        return {"messages": [model.bind_tools([search]).invoke(state["messages"])]}

    graph = StateGraph(Messages)
    graph.add_node("act", act)
    graph.add_node("tools", ToolNode([search]))
    graph.add_edge(START, "act")
    graph.add_edge("act", "tools")
    graph.compile().invoke({"messages": [HumanMessage("who?")]})


def labelled(model: Any) -> None:
    """Modules that are named by metadata, by a tag, and by the model's own run."""
    chain(model).with_config(metadata={"module_id": "writer"}, run_name="other").invoke({"text": "who?"})
    model.with_config(tags=["module:critic"]).invoke("who?")
    model.with_config(run_name="judge").invoke("who?")


def decorated(model: Any) -> None:
    """A node that calls a decorated function, which calls a graph."""

    @tracetune.module
    def helper(text: str) -> str:
        looped(model).invoke({"texts": ["a", "b", text]})
        return str(model.invoke(text).text)

    graph = StateGraph(State)
    graph.add_node("tell", lambda state: {"texts": [helper(state["texts"][-1])]})
    graph.add_edge(START, "tell")
    graph.compile().invoke(BEGINNING)


def refused(model: Any) -> None:
    """The server refuses."""
    with contextlib.suppress(BadRequestError):
        chain(model.model_copy(update={"model_name": "broken"})).with_config(run_name="tell").invoke({"text": "who?"})


def unnamed(model: Any) -> None:
    """Nothing has a name: the calls are the program's."""
    chain(model).invoke({"text": "who?"})
    model.invoke("who?")
