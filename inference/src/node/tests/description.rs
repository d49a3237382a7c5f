use super::harness::node_of_one;
use reqwest::StatusCode;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_describes_itself_for_programs_and_for_people() {
    let (_control_plane, node, _customer) = node_of_one(|_| {}).await;
    let (status, json) = node.get("/openapi.json", None).await;
    assert_eq!(status, StatusCode::OK);
    let document: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(document, crate::api::document());
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let statuses = operation["responses"].as_object().expect("responses");
            assert!(statuses.keys().all(|s| s.parse::<u16>().is_ok()), "{method} {path}");
            assert!(statuses.keys().any(|s| s.starts_with('2')), "{method} {path}");
            let parameters = operation["parameters"].as_array().expect("parameters");
            let takes_key = parameters.iter().any(|p| p["name"] == "Idempotency-Key");
            assert_eq!(takes_key, method == "post" && path.starts_with("/v1"), "{method} {path}");
        }
    }
    let names: Vec<_> =
        document["components"]["schemas"].as_object().expect("schemas").keys().collect();
    for reference in json.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(names.iter().any(|n| *n == name), "{name} is not described");
    }
    let page = reqwest::get(node.url("/docs")).await.expect("an answer");
    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'none'"));
    let page = page.text().await.expect("a body");
    assert!(page.contains("/v1/chat/completions") && page.contains("repetition_penalty"));
    node.stop().await;
}

#[test]
fn the_page_for_customers_names_every_parameter() {
    let page = include_str!("../../../../docs/api.md");
    let page = page.split("### What a request may say").nth(1).expect("the section");
    let page = page.split("\n## ").next().expect("its end");
    let document = crate::api::document();
    for request in ["ChatRequest", "CompletionRequest", "ResponseRequest"] {
        let properties = &document["components"]["schemas"][request]["properties"];
        for name in properties.as_object().expect("properties").keys() {
            assert!(page.contains(&format!("`{name}`")), "`{name}` of {request} is not there");
        }
    }
}
