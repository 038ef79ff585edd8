"""Whatever fits the published schema, and whatever does not, is answered without a mistake of the hub's."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest
import schemathesis
from api_world import World
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from api.app import create_app
from api.deps import ApiSettings, Services
from api.ratelimit import RateLimiter, Rules

# The schema does not depend on other services; the requests go to the app of the test.
settings_only = SimpleNamespace(
    settings=ApiSettings(crew_name="crew", rtmp_url="rtmp://hub.test/live", public_url="http://hub.test")
)
schema = schemathesis.openapi.from_dict(create_app(cast(Services, settings_only)).openapi())


@pytest.fixture
def unlimited(still_world: World) -> World:
    limiter = RateLimiter(None, Rules(**{f.name: 1_000_000 for f in dataclasses.fields(Rules)}))
    object.__setattr__(still_world.services, "limiter", limiter)
    still_world.project()  # or it would rightly say that it is not ready
    return still_world


@schema.parametrize()
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_input_makes_the_hub_fail(case: schemathesis.Case, unlimited: World) -> None:
    response = case.call(app=unlimited.app, headers=unlimited.operator)
    case.validate_response(
        response, checks=(not_a_server_error, content_type_conformance, response_schema_conformance)
    )
