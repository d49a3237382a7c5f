//! Accounts, sessions and API keys: who calls.

pub mod account;
mod caller;
mod limits;
mod operator;
pub(crate) mod origin;
mod password;
mod session;

pub use account::{LogIn, LoggedIn, SignUp, Visitor};
pub use caller::{Caller, ClientAddress, KeyCaller, OperatorCaller, RequestId, TenantCaller};
pub use operator::create_operator;
pub use password::{PasswordError, Passwords, check_password_rules};
pub use session::{NewSession, Session, SessionTenant, removal_cookie};
