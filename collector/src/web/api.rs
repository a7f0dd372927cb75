//! The JSON API: `/api/v1/…`.
//!
//! Invariant: routes, their parameters and the OpenAPI document come from one table, [`ROUTES`]. A
//! request that the document does not allow gets an error that says what is wrong. Numbers are the
//! agent's records, of the frame that `/metrics` serves. Checked by unit tests over sockets, which
//! compare answers with the document, and by schemathesis against a live agent (tests/live/api.rs).

mod accept;
mod cgroups;
mod containers;
mod openapi;
mod parameters;

use bytes::Bytes;
use hyper::StatusCode;
use percent_encoding::percent_decode_str;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

pub(super) use accept::json_is_welcome;
use parameters::{Parameter, ParameterKind, Query};

use super::Served;
use crate::agent::AgentStatus;

/// Path prefix of the API.
pub(super) const PREFIX: &str = "/api/v1/";
/// Longest query, bytes.
const MAX_QUERY: usize = 4096;

/// One route.
struct Route {
    /// Path below [`PREFIX`].
    path: &'static str,
    /// Parameter that takes the rest of the path, if the route has one.
    rest: Option<Parameter>,
    /// Name in the request counters, and `operationId`.
    name: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    /// Whether the answer may be 404.
    may_miss: bool,
    /// Schema of the answer.
    schema: fn(&mut SchemaGenerator) -> Schema,
    answer: fn(&Served, &Query) -> Result<Bytes, Refusal>,
}

/// Every route.
const ROUTES: &[Route] = &[
    Route {
        path: "containers",
        rest: None,
        name: "containers",
        summary: "List containers, or all cgroups, with their numbers",
        parameters: containers::PARAMETERS,
        may_miss: false,
        schema: SchemaGenerator::subschema_for::<containers::Page>,
        answer: containers::list,
    },
    Route {
        path: "containers/",
        rest: Some(Parameter {
            name: "key",
            about: "Full id of a container, its name, a unique prefix of its id (at least 4 characters), \
                    or the percent-encoded path of any cgroup",
            kind: ParameterKind::Text,
        }),
        name: "container",
        summary: "Show one container or cgroup with its numbers",
        parameters: &[],
        may_miss: true,
        schema: SchemaGenerator::subschema_for::<crate::agent::Record>,
        answer: containers::one,
    },
    Route {
        path: "cgroups",
        rest: None,
        name: "cgroups",
        summary: "Show cgroups as a tree",
        parameters: cgroups::PARAMETERS,
        may_miss: true,
        schema: SchemaGenerator::subschema_for::<cgroups::Forest>,
        answer: cgroups::tree,
    },
    Route {
        path: "status",
        rest: None,
        name: "status",
        summary: "Show the state of the agent: version, sources, runtimes, slots",
        parameters: &[],
        may_miss: false,
        schema: SchemaGenerator::subschema_for::<ServerStatus>,
        answer: |served, _| reply(&status(served)?),
    },
    Route {
        path: "openapi.json",
        rest: None,
        name: "openapi",
        summary: "Get this document",
        parameters: &[],
        may_miss: false,
        schema: |_| schemars::json_schema!({ "type": "object" }),
        answer: |_, _| reply(&openapi::document()),
    },
];

/// State of the agent and its server.
#[derive(Debug, Serialize, JsonSchema)]
struct ServerStatus {
    /// Addresses that the server listens on.
    listen: Vec<String>,
    #[serde(flatten)]
    agent: AgentStatus,
}

fn status(served: &Served) -> Result<ServerStatus, Refusal> {
    Ok(ServerStatus {
        listen: served.addresses.iter().map(ToString::to_string).collect(),
        agent: served.metrics.status().map_err(Refusal::failure)?,
    })
}

/// An error answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Refusal {
    #[serde(skip)]
    pub(super) code: StatusCode,
    /// What is wrong.
    error: String,
    /// Suggestions: ids of containers with that prefix, or names of parameters.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    matches: Vec<String>,
}

impl Refusal {
    fn new(code: StatusCode, error: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
            matches: Vec::new(),
        }
    }

    fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    fn failure(error: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }

    /// Adds suggestions, up to a limit.
    fn with(mut self, matches: impl IntoIterator<Item = String>) -> Self {
        self.matches = matches.into_iter().take(20).collect();
        self
    }

    /// Returns the body of the answer.
    pub(super) fn body(&self) -> Bytes {
        reply(self).unwrap_or_else(|_| {
            Bytes::from_static(b"{\"error\":\"the error could not be encoded\"}\n")
        })
    }
}

/// A valid request for a route.
pub(super) struct Call {
    route: &'static Route,
    query: Query,
}

/// Name of a path's route, as used by the request counters.
pub(super) fn is_there(path: &str) -> Option<&'static str> {
    find(path).map(|(route, _)| route.name)
}

fn find(path: &str) -> Option<(&'static Route, &str)> {
    let path = path.strip_prefix(PREFIX)?;
    ROUTES.iter().find_map(|route| match &route.rest {
        None => (route.path == path).then_some((route, "")),
        Some(_) => {
            let rest = path.strip_prefix(route.path)?;
            (!rest.is_empty()).then_some((route, rest))
        }
    })
}

impl Call {
    /// Parses a request for a path with a route.
    pub(super) fn new(path: &str, query: Option<&str>) -> Result<Self, Refusal> {
        let (route, rest) = find(path)
            .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "there is no such path"))?;
        let query = query.unwrap_or_default();
        if query.len() > MAX_QUERY || rest.len() > MAX_QUERY {
            return Err(Refusal::new(
                StatusCode::URI_TOO_LONG,
                format!("the query or path is longer than {MAX_QUERY} bytes"),
            ));
        }
        let mut query = Query::parse(query, route.parameters)?;
        if let Some(parameter) = &route.rest {
            parameters::check_encoding(rest)?;
            let value = percent_decode_str(rest).decode_utf8();
            let value = value.map_err(|_| Refusal::bad("the path is not UTF-8"))?;
            query.set(parameter.name, value.into_owned());
        }
        Ok(Self { route, query })
    }

    /// Makes the answer. Blocks for milliseconds.
    pub(super) fn answer(&self, served: &Served) -> Result<Bytes, Refusal> {
        (self.route.answer)(served, &self.query)
    }
}

/// Encodes a value as the body of an answer.
fn reply(value: &impl Serialize) -> Result<Bytes, Refusal> {
    let mut body =
        serde_json::to_vec(value).map_err(|error| Refusal::failure(error.to_string()))?;
    body.push(b'\n');
    Ok(Bytes::from(body))
}
