"""A LangGraph agent that learns to find people, with no decorator but the program's: its nodes are the modules.

It plans, searches as often as the policy asks for, then answers. It starts from the small
policy that comes with tracetune:

    python examples/langgraph_agent.py --steps 60
"""

from __future__ import annotations

import argparse
import re
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

import tracetune as tt
from tracetune.demo import POLICY_FOLDER, task
from tracetune.demo.program import MAX_HOPS, answer_prompt, hop_prompt
from tracetune.trainers.local import LocalTrainer


class State(TypedDict):
    """What the nodes hand on: the task, the names found so far, and whether the last one was the end."""

    facts: str
    question: str
    trail: list[str]
    is_last: bool


def ask(form: str, prompt: str) -> tuple[str, ...]:
    """The policy's answer, in the form that the node needs."""
    policy = tt.policy()
    model = ChatOpenAI(
        base_url=policy.base_url, api_key=policy.api_key, model=policy.model, temperature=0, max_tokens=8
    )
    text = model.invoke([HumanMessage(prompt)]).text
    if not (match := re.fullmatch(form, text)):
        raise tt.FormatError(f"expected a completion of the form {form}, not {text!r}")
    return match.groups()


def plan(state: State) -> dict[str, Any]:
    """Where the search begins: with the first name of the question."""
    return {"trail": [state["question"].split()[0]], "is_last": False}


def search(state: State) -> dict[str, Any]:
    """One more name on the trail."""
    name, word = ask(r"(\w+) (more|done)", hop_prompt(state["facts"], state["question"], state["trail"]))
    return {"trail": [*state["trail"], name], "is_last": word == "done"}


def answer(state: State) -> dict[str, Any]:
    """The last word."""
    return {"trail": list(ask(r"the answer is (\w+)", answer_prompt(state["question"], state["trail"])))}


graph = StateGraph(State)
for node in (plan, search, answer):
    graph.add_node(node)
graph.add_edge(START, "plan")
graph.add_edge("plan", "search")
graph.add_conditional_edges(
    "search", lambda state: "answer" if state["is_last"] or len(state["trail"]) > MAX_HOPS else "search"
)
graph.add_edge("answer", END)
agent = graph.compile()


@tt.program
def find_person(facts: str, question: str) -> str:
    """The person whom a question leads to."""
    return str(agent.invoke({"facts": facts, "question": question})["trail"][-1])


def reward(example: tt.Example, output: str, rollout: Any) -> float:
    """As the demo's: the right name, less a tenth for each search too many."""
    searches = sum(call.module == "search" for call in rollout.calls)
    surplus = max(0, searches - example.labels["hops"])
    return 0.1 + 0.9 * float(output == example.labels["answer"]) - 0.1 * surplus


def main() -> None:
    """Train, and print the reward on held-out questions before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--val", type=int, default=60, help="how many held-out questions")
    options = parser.parse_args()
    trainer = LocalTrainer(POLICY_FOLDER, learning_rate=3e-4)
    train, val = task.examples("train", 200), task.examples("val", options.val)
    result = tt.optimize(
        find_person, train, reward, trainer, store="langgraph_agent.duckdb", steps=options.steps, val=val
    )
    if result.before and result.after:
        print(f"held-out reward {result.before.reward:.2f} -> {result.after.reward:.2f}")


if __name__ == "__main__":
    main()
