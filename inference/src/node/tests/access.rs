use super::control_plane::ControlPlane;
use super::harness::{Customer, Node, adapter, chat, key, node_of_one, tenant};
use lorikeet_contract::key::ApiKey;
use lorikeet_contract::link::{AdapterState, KeyResource, TenantResource, revocation::Target};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_key_is_refused_in_openais_shape_and_the_right_one_is_not() {
    let good = Customer::new();
    let (expired, manage_only, suspended, stale) =
        (Customer::new(), Customer::new(), Customer::new(), Customer::new());
    let resources = vec![
        tenant(good.tenant_resource()),
        key(good.key_resource()),
        tenant(expired.tenant_resource()),
        key(KeyResource { expires_unix_ms: Some(1), ..expired.key_resource() }),
        tenant(manage_only.tenant_resource()),
        key(KeyResource { scopes: vec!["manage".into()], ..manage_only.key_resource() }),
        tenant(TenantResource { suspended: true, ..suspended.tenant_resource() }),
        key(suspended.key_resource()),
        tenant(TenantResource { max_staleness_s: Some(0), ..stale.tenant_resource() }),
        key(stale.key_resource()),
    ];
    let control_plane = ControlPlane::start(resources);
    let node = Node::ready(&control_plane, |_| {}).await;

    let unknown = ApiKey::generate();
    // The id of a real key with the secret of another.
    let (id, other) = (good.key.key_id(), ApiKey::generate());
    let forged = forge(id, other.reveal());
    let mistyped = good.key.reveal().replace("lk_live_", "lk_live_x");
    for (key, status, code) in [
        (unknown.reveal(), 401, "invalid_api_key"),
        (&forged, 401, "invalid_api_key"),
        (&mistyped, 401, "invalid_api_key"),
        ("sk-something", 401, "invalid_api_key"),
        ("", 401, "invalid_api_key"),
        (expired.key.reveal(), 401, "expired_api_key"),
        (manage_only.key.reveal(), 403, "insufficient_scope"),
        (suspended.key.reveal(), 403, "account_suspended"),
        (stale.key.reveal(), 503, "manifest_stale"),
    ] {
        let (got, error) = node.refused(key, json!({})).await;
        assert_eq!((got.as_u16(), error["code"].as_str()), (status, Some(code)), "{error}");
        assert!(error["message"].as_str().is_some_and(|m| !m.contains("lk_live_x")), "{error}");
        let (models, _) = node.get("/v1/models", Some(key)).await;
        assert_eq!(models.as_u16(), status, "the same on every path");
    }
    let unknown_body = nameless(&node.get("/v1/models", Some(unknown.reveal())).await.1);
    let forged_body = nameless(&node.get("/v1/models", Some(&forged)).await.1);
    assert_eq!(forged_body, unknown_body, "not told apart");
    for path in ["/v1/models", "/v1/nothing", "/v1/chat/completions"] {
        let (status, body) = node.get(path, None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}: {body}");
    }
    node.chat(&good, json!({})).await;
    node.stop().await;
}

/// A well-formed key with `id` and the secret of `secret_of`: its checksum is right.
fn forge(id: &str, secret_of: &str) -> String {
    let body = format!("lk_live_{id}_{}", secret_of.split('_').nth(3).expect("a secret"));
    let alphabet = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut crc = crc32fast::hash(body.as_bytes());
    let mut digits = [0; 6];
    for digit in digits.iter_mut().rev() {
        *digit = alphabet[(crc % 62) as usize];
        crc /= 62;
    }
    let forged = format!("{body}_{}", String::from_utf8_lossy(&digits));
    assert!(ApiKey::parse(&forged).is_ok());
    forged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_adapter_and_one_that_does_not_exist_give_the_identical_404() {
    let (mine, other) = (Customer::new(), Customer::new());
    let adapters = [
        adapter(other.adapter("secret", AdapterState::Servable)),
        adapter(other.adapter("draft", AdapterState::Pending)),
        adapter(other.adapter("off", AdapterState::Disabled)),
        adapter(mine.adapter("mine-draft", AdapterState::Pending)),
        adapter(mine.adapter("mine-off", AdapterState::Disabled)),
        adapter(mine.adapter("mine-live", AdapterState::Servable)),
    ];
    let resources = [mine.resources(), other.resources(), adapters.to_vec()].concat();
    let control_plane = ControlPlane::start(resources);
    let node = Node::ready(&control_plane, |_| {}).await;
    let stranger = mine.key.reveal();

    for name in ["secret", "draft", "off", "secret@1", "secret@latest"] {
        let seen = node.post(stranger, &chat(json!({ "model": name }))).await;
        let (status, body) = (seen.status(), nameless(&seen.text().await.expect("a body")));
        assert_eq!(status, StatusCode::NOT_FOUND);
        // What a name gives that nobody has, but for the name itself.
        let absent = node.post(stranger, &chat(json!({ "model": "nobody-has-it" }))).await;
        assert_eq!(absent.status(), status);
        let absent = nameless(&absent.text().await.expect("a body"));
        assert_eq!(body, absent.replace("nobody-has-it", name), "byte for byte");
        let (status, of_path) = node.get(&format!("/v1/models/{name}"), Some(stranger)).await;
        assert_eq!((status, nameless(&of_path)), (StatusCode::NOT_FOUND, body));
    }
    let error: Value = node.refused(stranger, json!({ "model": "secret" })).await.1;
    let expected = "The model 'secret' does not exist or you do not have access to it.";
    assert_eq!(error["message"], expected);
    assert_eq!(error["code"], "model_not_found");

    for (name, code) in [("mine-draft", "adapter_not_ready"), ("mine-off", "adapter_disabled")] {
        let (status, error) = node.refused(stranger, json!({ "model": name })).await;
        assert_eq!((status, &error["code"]), (StatusCode::CONFLICT, &json!(code)));
    }
    let (_, models) = node.get("/v1/models", Some(stranger)).await;
    let models: Value = serde_json::from_str(&models).expect("JSON");
    let ids: Vec<_> = models["data"].as_array().expect("a list").iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["base", "mine-live"]);
    assert_eq!(models["data"][1]["root"], "mine-live@1");
    assert_eq!(models["data"][1]["adapter"]["max_rank"], 16);
    let (status, model) = node.get("/v1/models/mine-live@1", Some(stranger)).await;
    assert_eq!(status, StatusCode::OK, "{model}");
    assert!(model.contains(&mine.tenant.to_string()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_refused_at_once_its_running_request_ends_and_a_restart_remembers() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let running = chat(json!({ "stream": true, "max_tokens": 4000 }));
    let response = node.post(customer.key.reveal(), &running).await;
    let mut events = super::sse::Events::of(response);
    events.next().await.expect("a first event");

    control_plane.revoke(Target::KeyId(customer.key_id.to_string())).await;
    control_plane.until("the revocation is acknowledged", |s| s.revocation_acks == [1]).await;
    let (status, error) = node.refused(customer.key.reveal(), json!({})).await;
    assert_eq!((status.as_u16(), &error["code"]), (401, &json!("invalid_api_key")));
    let last = events.rest().await.pop().expect("a last event");
    assert_eq!(last["error"]["code"], "access_revoked", "{last}");
    let finals = |seen: &super::control_plane::Seen| {
        seen.finals_with(lorikeet_contract::link::FinishReason::Revoked).len()
    };
    control_plane.until("its usage arrives", |seen| finals(seen) == 1).await;

    let address = control_plane.url();
    control_plane.kill();
    let node = Node::start_on(node.stop().await, &address, |_| {}).await;
    node.until_ready().await;
    let (status, _) = node.refused(customer.key.reveal(), json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "the manifest on the disk still has the key");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_that_were_named_may_call_from_a_browser_and_no_others() {
    let (_control_plane, node, _customer) = node_of_one(|_| {}).await;
    let preflight = async |origin: &str| {
        let request = reqwest::Client::new()
            .request(Method::OPTIONS, node.url("/v1/chat/completions"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,x-stainless-os");
        request.send().await.expect("an answer").headers().clone()
    };
    let allowed = preflight("https://dashboard.example").await;
    assert_eq!(allowed["access-control-allow-origin"], "https://dashboard.example");
    assert!(allowed["access-control-allow-headers"].to_str().unwrap().contains("x-stainless-os"));
    let app = preflight("https://app.example").await;
    assert_eq!(app["access-control-allow-origin"], "https://app.example");
    let foreign = preflight("https://elsewhere.example").await;
    assert_ne!(
        foreign.get("access-control-allow-origin").map(|v| v.as_bytes()),
        Some(&b"https://elsewhere.example"[..])
    );
    let refused = reqwest::Client::new()
        .get(node.url("/v1/models"))
        .header("origin", "https://dashboard.example");
    let refused = refused.send().await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers()["access-control-allow-origin"], "https://dashboard.example");
    assert!(refused.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    node.stop().await;
}

/// An error without the id of its request, which is all that may differ.
fn nameless(body: &str) -> String {
    let id = body.find("req_").expect("the request's id");
    body.replace(&body[id..id + 36], "")
}
