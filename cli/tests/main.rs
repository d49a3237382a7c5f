//! The built program, from the outside.

mod postgres;
