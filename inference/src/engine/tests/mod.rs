mod adapters;
mod harness;
mod lifecycle;
mod property;
mod scheduling;
