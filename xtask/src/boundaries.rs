//! The boundaries of ARCHITECTURE.md, each a check that can fail.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Which of our crates each crate may depend on. An arrow points down only.
const ARROWS: &[(&str, &[&str])] = &[
    ("mm-plan", &[]),
    ("mm-fixtures", &[]),
    ("mm-header", &[]),
    ("mm-cache", &["mm-header"]),
    ("mm-probe", &["mm-plan", "mm-header"]),
    ("mm-engine", &["mm-plan", "mm-cache"]),
    ("mm-candle", &["mm-engine", "mm-plan", "mm-cache"]),
    ("mm-tch", &["mm-engine", "mm-plan", "mm-cache"]),
    ("mm-diffusion", &["mm-candle", "mm-engine", "mm-plan", "mm-cache", "mm-probe"]),
    ("mm-cli", &["mm-diffusion", "mm-candle", "mm-engine", "mm-plan", "mm-cache", "mm-probe"]),
];

/// Where each tensor library may be named.
const LIBRARIES: &[(&str, &[&str])] = &[("candle", &["mm-candle", "mm-diffusion"]), ("tch", &["mm-tch"])];

/// Crates without any `unsafe`.
const SAFE: &[&str] = &["mm-plan", "mm-header", "mm-probe", "mm-diffusion", "mm-cli", "mm-fixtures"];

/// The modules, or folders of them, in which `unsafe` may be allowed, each with SAFETY arguments.
const UNSAFE_MODULES: &[&str] = &[
    "crates/mm-cache/src/mapping.rs",
    "crates/mm-candle/src/card.rs",
    "crates/mm-engine/src/cuda/",
    "crates/mm-tch/src/memory.rs",
];

/// Doubles of a driver for tests: `unsafe` is not confined in them. Nothing that is published depends on one.
const DOUBLES: &[&str] = &["mm-fake-cuda"];

const LONGEST_FILE: usize = 700;

/// A target that has no std, only core and alloc.
const BARE: &str = "x86_64-unknown-none";

type Check = fn() -> Result<()>;

/// Runs every check; the error lists all that failed.
pub(crate) fn check() -> Result<()> {
    let mut checks: Vec<(&str, Check)> = vec![
        ("mm-plan depends on nothing", plan_is_pure),
        ("arrows between crates point down only", arrows),
        ("tensor libraries stay in their adapters", libraries),
        ("default features are empty", defaults),
        ("unsafe stays in its modules", unsafe_code),
        ("doubles are for tests only", doubles),
        ("no file is longer than 700 lines", lengths),
    ];
    let bare = add_bare_target();
    if bare.is_ok() {
        checks.push(("mm-plan builds without std", plan_is_bare));
    }
    let mut failed = Vec::new();
    for (name, check) in checks {
        match check() {
            Ok(()) => println!("ok    {name}"),
            Err(error) => {
                println!("FAIL  {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if let Err(error) = bare {
        println!("{error:#}\nSKIPPED, NOT CHECKED: mm-plan builds without std; it needs `rustup target add {BARE}`");
    }
    ensure!(failed.is_empty(), "boundaries broken: {}", failed.join("; "));
    Ok(())
}

fn plan_is_pure() -> Result<()> {
    let tree = cargo(&["tree", "--locked", "--package", "mm-plan", "--edges", "normal"])?;
    ensure!(tree.trim().lines().count() == 1, "cargo tree prints more than one line:\n{tree}");
    let front = fs::read_to_string("crates/mm-plan/src/lib.rs")?;
    ensure!(front.contains("#![no_std]"), "crates/mm-plan/src/lib.rs is not no_std");
    for file in sources("crates/mm-plan/src")? {
        let text = fs::read_to_string(&file)?;
        // Doc examples are programs of their own, and names of element types stand in quotes.
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//") && !line.contains('"'));
        for line in code {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let forbidden = words.find(|word| ["std", "f32", "f64"].contains(word));
            ensure!(forbidden.is_none(), "{}: {forbidden:?} in {line:?}", file.display());
        }
    }
    Ok(())
}

/// Needs rustup, and the first time a network.
fn add_bare_target() -> Result<()> {
    let installed = output("rustup", &["target", "list", "--installed"])?;
    if !installed.lines().any(|target| target == BARE) {
        output("rustup", &["target", "add", BARE])?;
    }
    Ok(())
}

/// `#![no_std]` alone does not keep a dependency, or an `extern crate`, from bringing std back.
fn plan_is_bare() -> Result<()> {
    for features in ["", "serde"] {
        cargo(&["check", "--locked", "--quiet", "--package", "mm-plan", "--target", BARE, "--features", features])?;
    }
    Ok(())
}

fn arrows() -> Result<()> {
    for package in packages()? {
        let name = text(&package, "name")?;
        let Some((_, allowed)) = ARROWS.iter().find(|(crate_name, _)| *crate_name == name) else { continue };
        for dependency in dependencies(&package, true)?.into_iter().filter(|d| d.starts_with("mm-")) {
            ensure!(allowed.contains(&dependency.as_str()), "{name} depends on {dependency}");
        }
    }
    Ok(())
}

fn libraries() -> Result<()> {
    for package in packages()? {
        let name = text(&package, "name")?;
        if !ARROWS.iter().any(|(crate_name, _)| *crate_name == name) {
            continue;
        }
        for (library, homes) in LIBRARIES.iter().filter(|(_, homes)| !homes.contains(&name.as_str())) {
            let named = dependencies(&package, false)?.into_iter().find(|d| {
                d == library || d.starts_with(&format!("{library}-")) || (*library == "tch" && d == "torch-sys")
            });
            ensure!(named.is_none(), "{name} names {named:?}; only {homes:?} may");
        }
    }
    Ok(())
}

fn defaults() -> Result<()> {
    for package in packages()? {
        let default = package["features"].get("default").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(default == 0, "{} has default features", text(&package, "name")?);
    }
    Ok(())
}

fn unsafe_code() -> Result<()> {
    for name in SAFE {
        let front = [format!("crates/{name}/src/lib.rs"), format!("crates/{name}/src/main.rs")];
        let front = front.iter().find(|f| Path::new(f).exists()).with_context(|| format!("{name} has no front"))?;
        ensure!(fs::read_to_string(front)?.contains("#![forbid(unsafe_code)]"), "{front} doesn't forbid unsafe_code");
    }
    for file in sources("crates")? {
        let path = file.to_string_lossy().replace('\\', "/");
        let is_double = DOUBLES.iter().any(|name| path.starts_with(&format!("crates/{name}/")));
        let is_allowed = UNSAFE_MODULES.iter().any(|m| path == *m || (m.ends_with('/') && path.starts_with(m)));
        if path.contains("/src/") && !is_double && !is_allowed {
            let text = fs::read_to_string(&file)?;
            let allows =
                text.lines().any(|line| line.contains("allow(unsafe_code)") && !line.trim_start().starts_with("//"));
            // One line in a lib.rs may open the one module: `#[allow(unsafe_code)] mod mapping;`.
            ensure!(!allows || path.ends_with("/lib.rs"), "{path} allows unsafe_code");
        }
    }
    Ok(())
}

fn doubles() -> Result<()> {
    for package in packages()? {
        let name = text(&package, "name")?;
        let named = dependencies(&package, true)?.into_iter().find(|d| DOUBLES.contains(&d.as_str()));
        ensure!(named.is_none(), "{name} depends on {named:?} outside its tests");
        // `publish = false` is an empty list of registries.
        let is_private = package["publish"].as_array().is_some_and(Vec::is_empty);
        ensure!(is_private || !DOUBLES.contains(&name.as_str()), "{name} could be published");
    }
    Ok(())
}

fn lengths() -> Result<()> {
    for folder in ["crates", "xtask", "tests"] {
        for file in sources(folder)? {
            let lines = fs::read_to_string(&file)?.lines().count();
            ensure!(lines <= LONGEST_FILE, "{} has {lines} lines", file.display());
        }
    }
    Ok(())
}

fn packages() -> Result<Vec<Value>> {
    let metadata = cargo(&["metadata", "--locked", "--no-deps", "--format-version", "1"])?;
    let mut metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => bail!("cargo metadata lists no packages"),
    }
}

/// Names of a package's dependencies; `normal`: without those of its tests.
fn dependencies(package: &Value, normal: bool) -> Result<BTreeSet<String>> {
    let list = package["dependencies"].as_array().context("cargo metadata lists no dependencies")?;
    // A test may use what it likes of a tensor library in the adapters; kind is null for normal ones.
    list.iter().filter(|d| d["kind"].is_null() || !normal).map(|d| text(d, "name")).collect()
}

fn text(value: &Value, key: &str) -> Result<String> {
    Ok(value[key].as_str().with_context(|| format!("cargo metadata has no {key}"))?.to_owned())
}

fn sources(folder: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn cargo(args: &[&str]) -> Result<String> {
    output(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), args)
}

fn output(program: impl AsRef<OsStr>, args: &[&str]) -> Result<String> {
    let program = program.as_ref();
    let command = || format!("{} {}", program.display(), args.join(" "));
    let output = Command::new(program).args(args).output().with_context(command)?;
    ensure!(output.status.success(), "{}: {}", command(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
