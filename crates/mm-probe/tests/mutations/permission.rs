//! Files that may not be read: errors that name them. Root may read everything, so a child without root's rights looks.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::{env, io};

use crate::checkpoint::{self, Specials};

/// Nobody's, on every Unix.
const NOBODY: u32 = 65534;
const CHILD: &str = "MM_MUTATIONS_CHILD";

#[test]
fn files_that_may_not_be_read() {
    let folder = crate::folder();
    let specials = Specials::make(folder.path());
    let forbid = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("owned");
    forbid(folder.path(), 0o755);
    let mut cases = 0;
    for (number, checkpoint) in checkpoint::all().iter().enumerate() {
        for (of, mode, whole_folder) in [("safetensors", 0, false), ("json", 0, false), ("safetensors", 0o444, true)] {
            let Some(path) = checkpoint.nodes.keys().find(|path| path.ends_with(of) && is_read(path)) else { continue };
            let case = folder.path().join(format!("{number}-{of}-{mode}"));
            checkpoint.write(&case, &specials);
            let path = case.join(path);
            let culprit = if whole_folder { path.parent().expect("a folder").to_owned() } else { path };
            forbid(&culprit, mode);
            fs::write(case.with_extension("case"), format!("{}\n{}", checkpoint.root, culprit.display()))
                .expect("writes");
            cases += 1;
        }
    }
    assert!(cases > 10, "{cases}");
    let is_root = folder.path().metadata().expect("there").uid() == 0;
    if !is_root {
        return look(folder.path());
    }
    let mut child = Command::new(env::current_exe().expect("this test"));
    child.args(["--exact", "permission::looked_at_by_a_child", "--nocapture"]).env(CHILD, folder.path());
    match child.uid(NOBODY).gid(NOBODY).output() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("SKIPPED, NOT CHECKED: this test's file may not be started by another user");
        }
        outcome => {
            let outcome = outcome.expect("starts");
            let text = String::from_utf8_lossy(&outcome.stdout);
            let more = String::from_utf8_lossy(&outcome.stderr);
            assert!(outcome.status.success() && text.contains("looked at all"), "{text}\n{more}");
        }
    }
    // Else the folder can't be removed by whoever made it.
    for entry in folder.path().read_dir().expect("a folder").flatten() {
        let _ = fs::set_permissions(entry.path(), Permissions::from_mode(0o755));
    }
}

/// The child's part; does nothing where this is not the child.
#[test]
fn looked_at_by_a_child() {
    if let Some(folder) = env::var_os(CHILD) {
        look(Path::new(&folder));
        println!("looked at all");
    }
}

fn look(folder: &Path) {
    let cases = folder.read_dir().expect("a folder").flatten().map(|entry| entry.path());
    for case in cases.filter(|path| path.extension().is_some_and(|extension| extension == "case")) {
        let text = fs::read_to_string(&case).expect("readable");
        let (root, culprit) = text.split_once('\n').expect("two lines");
        match mm_probe::inspect(case.with_extension("").join(root), None) {
            Ok(_) => panic!("{culprit} is passed over"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(culprit) && text.to_lowercase().contains("permission"), "{culprit}: {text}");
            }
        }
    }
}

/// Whether inspecting looks into it: not what lies beside the weights, nor what tokenizers and schedulers have.
fn is_read(path: &str) -> bool {
    let beside = path.contains("stray") || path.contains("fp16");
    !beside
        && ["safetensors", "config.json", "index.json"].iter().any(|end| path.ends_with(end))
        && !path.contains("_config.json")
}
