"""LangChain and LangGraph: an execution for each node, a call for each chat model's answer.

`install` gives every run of LangChain the one callback handler; `TracetuneCallback`, passed by
hand in `config={"callbacks": [...]}`, does the same for one run.
"""

from tracetune.adapters.langchain.callback import TracetuneCallback, install

__all__ = ["TracetuneCallback", "install"]
