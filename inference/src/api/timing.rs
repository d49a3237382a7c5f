//! Where the time before the first token went, in headers. They go out with the first token, so a
//! stream has them too.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use std::time::Duration;

pub const X_QUEUE: HeaderName = HeaderName::from_static("x-lorikeet-queue-ms");
pub const X_ADAPTER_LOAD: HeaderName = HeaderName::from_static("x-lorikeet-adapter-load-ms");

/// What a request waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// From its submission to the first step that worked on it.
    pub queue: Duration,
    /// Of the queue time, until its adapter was on the device.
    pub adapter_load: Duration,
}

impl Timing {
    /// The response, with both times in whole milliseconds.
    pub fn told_in(self, mut response: Response) -> Response {
        let times = [(X_QUEUE, self.queue), (X_ADAPTER_LOAD, self.adapter_load)];
        for (name, time) in times {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            response.headers_mut().insert(name, HeaderValue::from(millis));
        }
        response
    }
}
