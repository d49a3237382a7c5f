//! Which nodes are let in, and for how long.

use crate::nodes::{Node, authorized, dial, token};
use crate::plane::{LinkProcess, Plane, signing_key};
use lorikeet_contract::NodeId;
use lorikeet_contract::link::{Hello, UsageBatch};
use lorikeet_contract::usage::NodeClaims;
use lorikeet_control_plane::link::issue_node_token;
use std::time::{Duration, Instant, SystemTime};
use tonic::Code;

#[tokio::test]
async fn a_node_is_let_in_only_with_its_own_valid_token_and_a_version_that_is_understood() {
    let plane = Plane::new().await;
    let process = LinkProcess::start(&plane).await;
    let node = Node::new();
    let hello = node.hello();
    let refused = async |hello: Hello, token: &str| match dial(&process, hello, token).await {
        Ok(_) => panic!("it was let in"),
        Err(status) => status.code(),
    };
    let expired = issue_node_token(signing_key(), node.id, "n", Duration::ZERO).unwrap();
    assert!(dial(&process, hello.clone(), &expired).await.is_ok(), "clocks differ by some seconds");
    assert_eq!(refused(hello.clone(), "junk").await, Code::Unauthenticated);
    assert_eq!(refused(hello.clone(), &token(NodeId::new())).await, Code::PermissionDenied);
    let own = token(node.id);
    for version in [0, 3] {
        let hello = Hello { protocol_version: version, ..hello.clone() };
        assert_eq!(refused(hello, &own).await, Code::FailedPrecondition);
    }
    let next = Hello { protocol_version: 2, ..hello.clone() };
    assert!(dial(&process, next, &own).await.is_ok(), "one version ahead");
    let no_base = Hello { base_model: None, ..hello.clone() };
    assert_eq!(refused(no_base, &own).await, Code::InvalidArgument);

    let batch = UsageBatch { node_id: NodeId::new().to_string(), ..UsageBatch::default() };
    let shipped = process.client().await.ship_usage(authorized(batch, &own)).await;
    assert_eq!(shipped.unwrap_err().code(), Code::PermissionDenied);
    let shipped = process.client().await.ship_usage(UsageBatch::default()).await;
    assert_eq!(shipped.unwrap_err().code(), Code::Unauthenticated);

    sqlx::query("update node set disabled_at = now()")
        .execute(&mut plane.owner().await)
        .await
        .unwrap();
    assert_eq!(refused(hello, &own).await, Code::PermissionDenied);
}

#[tokio::test]
async fn a_stream_ends_when_the_token_that_it_began_with_runs_out() {
    let plane = Plane::new().await;
    let process = LinkProcess::start(&plane).await;
    let node = Node::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // Three seconds are left of those by which clocks may differ.
    let claims = NodeClaims {
        iss: NodeClaims::ISSUER.into(),
        aud: NodeClaims::AUDIENCE.into(),
        sub: node.id.to_string(),
        name: "n".into(),
        nbf: now - 60,
        exp: now - 28,
    };
    let token = signing_key().sign(&claims).unwrap();
    let began = Instant::now();
    let (_outbound, mut inbound) = dial(&process, node.hello(), &token).await.unwrap();
    while let Ok(Some(_)) = inbound.message().await {}
    assert!(began.elapsed() < Duration::from_secs(12), "it ended before the node's silence would");
    plane.see("select not connected from node", true).await;
    let again = dial(&process, node.hello(), &token).await;
    assert!(again.is_err_and(|status| status.code() == Code::Unauthenticated));
}
