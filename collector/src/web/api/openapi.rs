//! The OpenAPI document, made from the table of routes and the types of the answers.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{PREFIX, ROUTES, Refusal, Route, parameters::Parameter};

/// Returns the document, OpenAPI 3.1.
pub(super) fn document() -> Value {
    // OpenAPI 3.1's schemas are JSON Schema 2020-12.
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let refusal = generator.subschema_for::<Refusal>();
    let mut paths = Map::new();
    for route in ROUTES {
        let schema = (route.schema)(&mut generator);
        let rest = route
            .rest
            .iter()
            .map(|parameter| described(parameter, "path"));
        let query = route.parameters.iter();
        let query = query.map(|parameter| described(parameter, "query"));
        let parameters: Vec<Value> = rest.chain(query).collect();
        let mut responses = Map::new();
        responses.insert(
            "200".to_owned(),
            json!({
                "description": "The answer",
                "content": { "application/json": { "schema": schema } },
            }),
        );
        for (code, description) in refusals(route) {
            let content = json!({ "application/json": { "schema": refusal } });
            let response = json!({ "description": description, "content": content });
            responses.insert(code.to_owned(), response);
        }
        let operation = |name: &str, responses: &Map<String, Value>| {
            json!({
                "operationId": name,
                "summary": route.summary,
                "parameters": parameters,
                "responses": responses,
            })
        };
        let methods = json!({ "get": operation(route.name, &responses) });
        paths.insert(template(route), methods);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "cgmeter",
            "version": crate::VERSION,
            "summary": "Every cgroup of this host, metered from inside the kernel",
            "description": "The numbers are those of /metrics, from the same snapshot. HEAD is supported as well.",
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

/// Path of a route as the document writes it.
pub(super) fn template(route: &Route) -> String {
    let rest = route
        .rest
        .map(|parameter| format!("{{{}}}", parameter.name));
    format!("{PREFIX}{}{}", route.path, rest.unwrap_or_default())
}

fn described(parameter: &Parameter, place: &str) -> Value {
    let mut object = json!({
        "name": parameter.name,
        "in": place,
        "required": place == "path",
        "description": parameter.about,
        "schema": parameter.kind.schema(),
    });
    if place == "path" {
        // The one cgroup that exists on every host.
        object["example"] = json!("/");
    }
    object
}

fn refusals(route: &Route) -> impl Iterator<Item = (&'static str, &'static str)> {
    let missing = route.may_miss.then_some(("404", "No such cgroup"));
    [
        ("400", "Invalid request: error says why"),
        ("405", "Neither GET nor HEAD"),
        ("406", "The Accept header does not allow JSON"),
        ("414", "The query or path is too long"),
        ("500", "The snapshot could not be taken"),
        ("503", "Too many concurrent requests"),
    ]
    .into_iter()
    .chain(missing)
}
