use super::*;

/// Lays files out below a folder that stands for `/`.
fn limit_of(files: &[(&str, &str)]) -> Option<Limit> {
    let root = tempfile::tempdir().expect("a folder");
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("creates");
        fs::write(path, text).expect("writes");
    }
    limit(root.path())
}

fn some(total: u64, available: u64) -> Option<Limit> {
    Some(Limit { total, available })
}

const IN_A_B: (&str, &str) = ("proc/self/cgroup", "0::/a/b\n");

#[test]
fn version_2() {
    let max = ("sys/fs/cgroup/a/b/memory.max", "1000\n");
    assert_eq!(limit_of(&[IN_A_B, max]), some(1000, 1000));
    let current = ("sys/fs/cgroup/a/b/memory.current", "400\n");
    assert_eq!(limit_of(&[IN_A_B, max, current]), some(1000, 600));
    let stat = ("sys/fs/cgroup/a/b/memory.stat", "anon 7\ninactive_file 300\nactive_file 5\n");
    assert_eq!(limit_of(&[IN_A_B, max, current, stat]), some(1000, 900));
}

#[test]
fn the_lowest_limit_around_wins_and_each_level_counts_its_own_use() {
    let files = [
        IN_A_B,
        ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ("sys/fs/cgroup/a/b/memory.current", "1\n"),
        ("sys/fs/cgroup/a/memory.max", "1000\n"),
        ("sys/fs/cgroup/a/memory.current", "100\n"),
        ("sys/fs/cgroup/memory.max", "5000\n"),
        ("sys/fs/cgroup/memory.current", "4950\n"),
    ];
    assert_eq!(limit_of(&files), some(1000, 50));
}

#[test]
fn more_used_than_allowed_leaves_nothing() {
    let files = [IN_A_B, ("sys/fs/cgroup/a/memory.max", "10"), ("sys/fs/cgroup/a/memory.current", "11")];
    assert_eq!(limit_of(&files), some(10, 0));
}

#[test]
fn version_1_and_hybrid() {
    let hybrid = ("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/job:1\n1:cpuset:/y\n0::/\n");
    let files = [
        hybrid,
        ("sys/fs/cgroup/memory/job:1/memory.limit_in_bytes", "2000\n"),
        ("sys/fs/cgroup/memory/job:1/memory.usage_in_bytes", "700\n"),
        ("sys/fs/cgroup/memory/job:1/memory.stat", "inactive_file 1\ntotal_inactive_file 200\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
    ];
    assert_eq!(limit_of(&files), some(2000, 1500));
    let unified = ("sys/fs/cgroup/unified/memory.max", "1500\n");
    assert_eq!(limit_of(&[hybrid, unified]), some(1500, 1500));
}

#[test]
fn a_group_path_of_the_host_falls_back_to_the_mount() {
    let docker = ("proc/self/cgroup", "3:memory:/docker/0123\n");
    assert_eq!(limit_of(&[docker, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "800")]), some(800, 800));
    let outside = ("proc/self/cgroup", "0::/../../secret\n");
    let files = [outside, ("sys/fs/cgroup/memory.max", "900"), ("sys/secret/memory.max", "1")];
    assert_eq!(limit_of(&files), some(900, 900));
}

#[test]
fn none_set_is_none() {
    assert_eq!(limit_of(&[]), None);
    assert_eq!(limit_of(&[IN_A_B]), None);
    assert_eq!(limit_of(&[IN_A_B, ("sys/fs/cgroup/a/memory.max", "max\n")]), None);
    for text in ["", "x", "0:", "0::", "memory", ":::::", "\u{0}"] {
        assert_eq!(limit_of(&[("proc/self/cgroup", text), ("sys/fs/cgroup/a/memory.max", "1")]), None, "{text:?}");
    }
    for text in ["", "-1", "1e3", "99999999999999999999999"] {
        assert_eq!(limit_of(&[IN_A_B, ("sys/fs/cgroup/a/memory.max", text)]), None, "{text:?}");
    }
}
