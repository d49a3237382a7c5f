//! Which credential may call which operation.

use crate::{Access, Credential};
use s3s::access::{S3Access, S3AccessContext};
use s3s::{S3Result, s3_error};
use std::collections::HashMap;

/// Operations that change nothing. One that is not listed needs `Access::ReadWrite`.
const READ_ONLY_OPERATIONS: [&str; 6] =
    ["GetObject", "HeadObject", "ListObjects", "ListObjectsV2", "HeadBucket", "GetBucketLocation"];

pub struct Credentials {
    access_by_key: HashMap<String, Access>,
}

impl Credentials {
    pub fn new(credentials: &[Credential]) -> Self {
        let entry = |c: &Credential| (c.access_key.clone(), c.access);
        Self { access_by_key: credentials.iter().map(entry).collect() }
    }
}

#[async_trait::async_trait]
impl S3Access for Credentials {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let key = cx.credentials().map(|c| c.access_key.as_str());
        match key.and_then(|key| self.access_by_key.get(key)) {
            Some(Access::ReadWrite) => Ok(()),
            Some(Access::ReadOnly) if READ_ONLY_OPERATIONS.contains(&cx.s3_op().name()) => Ok(()),
            Some(Access::ReadOnly) => {
                Err(s3_error!(AccessDenied, "this credential may only read objects"))
            }
            None => Err(s3_error!(AccessDenied, "a signature is required")),
        }
    }
}
