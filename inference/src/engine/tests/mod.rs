mod adapters;
mod harness;
mod kit;
mod lifecycle;
mod property;
mod rules;
mod scheduling;
