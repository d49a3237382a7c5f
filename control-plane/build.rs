//! A new migration is compiled in without a change to any Rust file.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
