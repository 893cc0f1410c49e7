//! Compiles `src/memory.cpp` against the libtorch that torch-sys found, and links this crate's own tests to all of it.

fn main() {
    // With `doc-only` nothing is linked and no libtorch needed.
    #[cfg(all(feature = "libtorch", not(feature = "doc-only")))]
    libtorch::build();
}

#[cfg(all(feature = "libtorch", not(feature = "doc-only")))]
mod libtorch {
    use std::{
        env, fs,
        path::{Path, PathBuf},
    };

    /// The one that tch 0.24 is generated for.
    const WANTED: [&str; 3] = ["2", "11", "0"];

    pub(super) fn build() {
        for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "LIBTORCH_CXX11_ABI"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        println!("cargo:rerun-if-changed=src/memory.cpp");
        // torch-sys tells where it found one (it is a direct dependency for this).
        let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").unwrap_or_default());
        let beside = lib.parent().map(Path::to_path_buf).unwrap_or_default();
        let root = env::var_os("LIBTORCH_INCLUDE").map_or(beside, PathBuf::from);
        let include = root.join("include");
        if env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_none() {
            check_version(&include);
        }
        let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .warnings(false)
            .include(&include)
            .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
            .file("src/memory.cpp")
            .compile("mm_tch_memory");
        if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
            // A linker drops a library that no symbol is taken from, as libtorch_cuda: so libtorch is kept by force. This
            // reaches the tests, examples and benches of this crate only; programs call `cuda_is_available`.
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
            println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
            println!("cargo:rustc-link-arg=-ltorch");
        }
    }

    /// torch-sys asks only where there is a `build-version` file; the headers always say it.
    fn check_version(include: &Path) {
        let header = include.join("torch/headeronly/version.h");
        let text = fs::read_to_string(&header).unwrap_or_default();
        let part = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")));
            line.unwrap_or("?").trim().to_owned()
        };
        let found = [part("MAJOR"), part("MINOR"), part("PATCH")];
        if found != WANTED {
            let (found, wanted) = (found.join("."), WANTED.join("."));
            println!(
                "cargo::error=mm-tch needs libtorch {wanted}; {} is of libtorch {found}. `cargo xtask libtorch` makes a CPU \
                 one; set LIBTORCH to the one that is meant",
                include.display()
            );
        }
    }
}
