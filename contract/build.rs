//! Compiles the protobuf without `protoc`: protox parses it, tonic generates it.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/lorikeet/link/v1/link.proto";
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
