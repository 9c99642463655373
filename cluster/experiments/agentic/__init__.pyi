from .agents import run_agents
from .graph import draw_requests
from .router_actor import actor_desk, split_name
from .routing import GPU, LPU, Always, Learned, Router, Rule, make_router
from .settings import AgenticSettings
from .site import AgenticResult, agentic, build_site, run_agentic

__all__ = [
    "GPU",
    "LPU",
    "AgenticResult",
    "AgenticSettings",
    "Always",
    "Learned",
    "Router",
    "Rule",
    "actor_desk",
    "agentic",
    "build_site",
    "draw_requests",
    "make_router",
    "run_agentic",
    "run_agents",
    "split_name",
]
