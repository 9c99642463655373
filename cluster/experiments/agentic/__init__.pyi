from .agents import run_agents
from .graph import draw_requests
from .router_actor import actor_desk, split_name
from .routing import GPU, LPU, Always, Learned, Router, Rule, make_router
from .site import AgentChoice, build_site, run_agentic

__all__ = [
    "GPU",
    "LPU",
    "AgentChoice",
    "Always",
    "Learned",
    "Router",
    "Rule",
    "actor_desk",
    "build_site",
    "draw_requests",
    "make_router",
    "run_agentic",
    "run_agents",
    "split_name",
]
