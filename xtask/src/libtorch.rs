//! `cargo xtask libtorch`: a CPU libtorch of the version that tch is made for, assembled from Python wheels; and mm-tch's tests with it.

use crate::ci::{cargo, step};
use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where CI has it.
const FOLDER: &str = "target/libtorch";

/// What tch 0.24 is generated for.
const VERSION: &str = "2.11.0";

/// The wheel of torch, and those that its CPU library takes symbols from.
const WHEELS: [&str; 3] = ["torch==2.11.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];

/// Libraries of these two that are needed.
const FROM_CUDA: [&str; 2] = ["libcudart.so.13", "libcupti.so.13"];

/// What of torch's own is for GPUs and for Python.
const NEEDLESS: [&str; 7] = [
    "libtorch_cuda",
    "libtorch_nvshmem",
    "libc10_cuda",
    "libtorch_python",
    "libcaffe2_nvrtc",
    "libshm",
    "libtorch_global_deps",
];

/// Fetches about 540 MB by `python3 -m pip`, keeps 500 MB; x86-64 Linux. What is there already is left as it is.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where it goes.
    #[arg(default_value = FOLDER)]
    folder: PathBuf,
    /// Runs mm-tch's lints and tests as CI does, with the libtorch of `LIBTORCH` where it is set.
    #[arg(long)]
    test: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.test {
        return test(&args.folder);
    }
    let torch = make(&args.folder)?;
    let (torch, lib) = (torch.display(), torch.join("lib"));
    println!("export LIBTORCH={torch} LD_LIBRARY_PATH={}", lib.display());
    Ok(())
}

/// The folder for `LIBTORCH`.
fn make(folder: &Path) -> Result<PathBuf> {
    let torch = folder.join("torch");
    let version = torch.join("build-version");
    if fs::read_to_string(&version).is_ok_and(|text| text.trim() == VERSION) {
        return torch.canonicalize().context("its path");
    }
    // Assembled beside, and moved when it is whole: an interrupted fetch leaves nothing that looks like one.
    let wheels = folder.join("wheels");
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    remove(&wheels)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--target"]);
    pip.arg(&wheels).args(WHEELS);
    // Its standard output is ours, which is to be evaluated by a shell.
    let fetched = pip.stdout(std::io::stderr()).status().context("there is no python3 to fetch with")?;
    ensure!(fetched.success(), "pip could not fetch {}", WHEELS.join(", "));
    let lib = wheels.join("torch/lib");
    for name in FROM_CUDA {
        let from = wheels.join("nvidia/cu13/lib").join(name);
        fs::copy(&from, lib.join(name)).with_context(|| from.display().to_string())?;
    }
    for entry in entries(&lib)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap_or_default();
        if NEEDLESS.iter().any(|needless| stem.starts_with(needless)) || name == "libtorch.so" {
            remove(&entry)?;
        }
    }
    // torch's own is only there to bring the GPU's in.
    link("libtorch_cpu.so", &lib.join("libtorch.so"))?;
    for entry in entries(&wheels.join("torch"))? {
        if !["lib", "include"].iter().any(|kept| entry.ends_with(kept)) {
            remove(&entry)?;
        }
    }
    fs::write(wheels.join("torch/build-version"), format!("{VERSION}\n"))?;
    remove(&torch)?;
    fs::rename(wheels.join("torch"), &torch)?;
    remove(&wheels)?;
    torch.canonicalize().context("its path")
}

/// mm-tch's lints and tests against a libtorch: that of `LIBTORCH`, or one under `target/`. One that can't be fetched is no failure
/// of ours; it is told, loudly.
pub(crate) fn ci() -> Result<()> {
    test(Path::new(FOLDER))
}

fn test(folder: &Path) -> Result<()> {
    let compiler = Command::new("c++").arg("--version").output().context("there is no C++ compiler to build with");
    let torch = match env::var_os("LIBTORCH") {
        Some(given) => compiler.map(|_| PathBuf::from(given)),
        None => compiler.and_then(|_| make(folder)),
    };
    let torch = match torch {
        Ok(torch) => torch,
        Err(error) => {
            println!("== NOT TESTED: mm-tch with libtorch, which could not be had: {error:#}");
            return Ok(());
        }
    };
    let with = |args: &[&str]| {
        let mut command = cargo(args);
        command.env("LIBTORCH", &torch).env("LD_LIBRARY_PATH", torch.join("lib"));
        // Tests run beside each other: threads of libtorch's own in each would mostly wait for one another.
        command.env("OMP_NUM_THREADS", "1");
        command
    };
    let package = ["--locked", "--package", "mm-tch", "--features", "libtorch"];
    step("mm-tch's lints", with(&[&["clippy"], &package[..], &["--all-targets", "--", "-D", "warnings"]].concat()))?;
    step("mm-tch's tests", with(&[&["test"], &package[..]].concat()))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = folder.read_dir().with_context(|| folder.display().to_string())?;
    Ok(read.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

fn remove(path: &Path) -> Result<()> {
    let there = path.symlink_metadata();
    let removed = match there {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| path.display().to_string())
}

#[cfg(unix)]
fn link(to: &str, at: &Path) -> Result<()> {
    std::os::unix::fs::symlink(to, at).with_context(|| at.display().to_string())
}

#[cfg(not(unix))]
fn link(_: &str, at: &Path) -> Result<()> {
    anyhow::bail!("{}: the wheels are put together on Linux only; set LIBTORCH to a libtorch {VERSION}", at.display())
}
