"""Whatever fits the published schema, and whatever does not, is answered without a mistake of the hub's."""

import pytest
import schemathesis
from api_world import World
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from api.ratelimit import RateLimiter, Rules

schema = schemathesis.pytest.from_fixture("api_schema")


@pytest.fixture
def api_schema(still_world: World):
    unlimited = RateLimiter(None, Rules(**dict.fromkeys(Rules.__slots__, 1_000_000)))
    object.__setattr__(still_world.services, "limiter", unlimited)
    return schemathesis.openapi.from_asgi("/api/openapi.json", still_world.app)


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_input_makes_the_hub_fail(case: schemathesis.Case, still_world: World) -> None:
    response = case.call(headers=still_world.operator)
    case.validate_response(
        response, checks=(not_a_server_error, content_type_conformance, response_schema_conformance)
    )
