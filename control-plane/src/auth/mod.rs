//! Accounts, sessions and API keys: who calls.

mod caller;
pub mod limits;
mod operator;
pub mod origin;
mod password;
mod session;

pub use caller::{Caller, ClientAddress, KeyCaller, OperatorCaller, RequestId, TenantCaller};
pub use operator::create_operator;
pub use password::{PasswordError, Passwords, check_password_rules};
pub use session::{NewSession, Session, SessionTenant, removal_cookie};
