"""URLs of views of Ninja's and of REST framework's, below decorators that say nothing of them."""

from __future__ import annotations

import functools
from typing import Any

from asgiref.sync import iscoroutinefunction

from django.urls import URLPattern, path
from tests.django import ninja_api, views


def bare(view: Any) -> Any:
    """Hide a view, but for what Django itself has to know."""
    around: Any
    if iscoroutinefunction(view):

        async def around(request: Any, *args: Any, **kwargs: Any) -> Any:
            return await view(request, *args, **kwargs)
    else:

        def around(request: Any, *args: Any, **kwargs: Any) -> Any:
            return view(request, *args, **kwargs)

    around.csrf_exempt = True
    return around


def polite(view: Any) -> Any:
    return functools.wraps(view)(bare(view))


def _of_ninja(prefix: str, wrap: Any) -> list[URLPattern]:
    return [
        path(f"{prefix}/{each.pattern}", wrap(each.callback))
        for each in ninja_api.api.urls[0]
        if "openapi" not in str(each.pattern)
    ]


urlpatterns = [
    *_of_ninja("bare", bare),
    *_of_ninja("polite", polite),
    path("bare/devices", bare(views.ForBoth.as_view())),
    path("polite/devices", polite(bare(views.ForBoth.as_view()))),
]
