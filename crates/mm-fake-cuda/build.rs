//! Gives the library the name by which CUDA programs ask for the driver.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Once it is loaded by its path, whoever asks the loader for `libcuda.so` gets it, and never a real driver.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
}
