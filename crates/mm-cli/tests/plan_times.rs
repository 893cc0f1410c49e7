//! `mm plan` where links are known: times in the table, and the same as a picture.

mod common;

use common::{Answer, SHAPES, file, mm, mm_reading, names, text};
use roxmltree::{Document, Node};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// 48 blocks of 10 ms to compute and 16 ms to copy, 24 of them resident, for 28 passes; and one that is whole.
fn spec() -> Value {
    let layer = json!({"bytes": 400_000_000, "compute_ns": 10_000_000});
    json!({"schema": 1,
        "machine": {"vram_free": 24_000_000_000u64, "ram_available": 64_000_000_000u64, "ram_total": 64_000_000_000u64,
            "links": {"h2d": 25_000_000_000u64, "staging": 10_000_000_000u64, "copy_fixed_ns": 5000}},
        "components": [
            {"name": "transformer", "phase": 1, "passes": 28, "rest": 1_000_000,
                "activation": {"bytes": 1_500_000_000, "basis": "measured"},
                "stacks": [{"name": "layers", "groups": vec![layer; 48]}]},
            {"name": "vae", "phase": 2, "rest": 250_000_000}],
        "policy": {"strategy": "block_pin", "rule": "threshold", "low_cpu_mem": false, "resident": {"transformer": 24}}})
}

fn plan(spec: &Value, flags: &[&str]) -> Answer {
    mm_reading(&[&["plan", "--spec", "-"], flags].concat(), &spec.to_string())
}

/// The picture of a plan.
fn picture(spec: &Value, flags: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let svg = file(&folder, "plan.svg");
    plan(spec, &[&["--svg", text(&svg)], flags].concat()).ok();
    assert_eq!(names(folder.path()), ["plan.svg"]);
    fs::read_to_string(&svg).expect("reads")
}

/// What the bars of this class say, but for those of the next pass.
fn bars<'d>(document: &'d Document<'_>, class: &str) -> Vec<&'d str> {
    let of = |node: &Node<'_, '_>| node.attribute("class") == Some(&format!("bar {class}"));
    let says = |node: Node<'d, '_>| node.children().find(|child| child.has_tag_name("title")).and_then(|t| t.text());
    document.descendants().filter(of).map(|node| says(node).expect("a title")).collect()
}

fn texts(document: &Document<'_>) -> String {
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts.filter_map(|node| node.text()).map(|text| format!("{text}\n")).collect()
}

/// The row of a table that begins with this name, in words; the last table that has it.
fn row(table: &str, name: &str) -> Vec<String> {
    let row = table.lines().rfind(|line| line.split_whitespace().next() == Some(name)).expect("a row");
    row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_table_has_times_where_links_are_known() {
    let answer = plan(&spec(), &[]).ok().stdout;
    let lines: Vec<_> = answer.lines().collect();
    let document = plan(&spec(), &["--json"]).ok().json();
    let request = document["predicted"]["request_ns"].as_u64().expect("nanoseconds");
    let seconds = format!("{}.{:02} s per request", request / 1_000_000_000, request % 1_000_000_000 / 10_000_000);
    assert!(lines[1].starts_with(&format!("predicted: {seconds}, with these placements at least ")), "{answer}");
    assert_eq!(lines[2].trim(), "compute times are measured");
    let times = answer.split("between phases").nth(1).expect("a table of times");
    let tables = times.split("active together").next().expect("rows");
    // Everything streamed has a page-locked copy, and 48 blocks compute in 480 ms.
    let cells = row(tables, "transformer");
    assert!(cells[1].starts_with("28 × 4"), "{cells:?}");
    assert_eq!(cells[2], "480.0 ms");
    assert_eq!(cells[5..], ["leaves", "24 page-locked"], "{cells:?}");
    // It takes no time but to load: 250 MB at 10 GB/s.
    assert_eq!(row(tables, "vae"), ["vae", "1", "-", "25.00 ms", "-", "leaves", "-"]);
    let phases = answer.split("active together").nth(1).expect("phases");
    assert!(row(phases, "transformer").contains(&"1.39 GiB, measured".to_owned()), "{phases}");
    assert!(row(phases, "vae").contains(&"not known".to_owned()), "{phases}");
    let tables = lines.iter().take_while(|line| !line.starts_with("- "));
    assert!(tables.clone().count() > 10);
    for line in tables {
        assert!(line.chars().count() <= 100 && line.trim_end() == *line, "{line:?}");
    }
}

#[test]
fn what_is_not_known_is_said() {
    let mut unknown = spec();
    unknown["components"][0]["stacks"] = json!([{"name": "layers", "count": 48, "bytes": 400_000_000}]);
    assert!(plan(&unknown, &[]).ok().stdout.contains("\n           compute times are unknown and count as zero\n"));
    unknown["machine"]["links"] = Value::Null;
    let answer = plan(&unknown, &[]).ok().stdout;
    assert!(answer.contains("of it for activations") && answer.contains("measured"), "what is known is said: {answer}");
    for part in ["predicted", "compute times", "at least", "stalled", "between phases"] {
        assert!(!answer.contains(part), "{part:?} is in {answer}");
    }
}

#[test]
fn rule_cost_says_how_good_it_is() {
    let mut cost = spec();
    cost["policy"] = json!({"rule": "cost"});
    let proof = plan(&cost, &["--json"]).ok().json()["proof"].clone();
    let answer = plan(&cost, &[]).ok().stdout;
    let words = match proof["gap_permille"].as_u64() {
        None => "nothing is faster".to_owned(),
        Some(gap) => format!("at most {}.{} % could be gained", gap / 10, gap % 10),
    };
    assert!(answer.contains(&format!("\n           {words}; compute times are measured\n")), "{proof}: {answer}");
}

#[test]
fn rates_can_be_given() {
    let request = |flags: &[&str]| {
        let document = plan(&spec(), &[&["--json"], flags].concat()).ok().json();
        document["predicted"]["request_ns"].as_u64().expect("nanoseconds")
    };
    assert_eq!(request(&[]), request(&["--link", "25GB", "--staging", "10GB"]));
    assert!(request(&["--link", "5GB"]) > request(&[]) && request(&["--staging", "1GB"]) > request(&[]));
    // The other figures of the spec's links stay: a copy's fixed cost, and the staging rate.
    let mut slow = spec();
    slow["machine"]["links"]["copy_fixed_ns"] = json!(3_000_000);
    let slow = plan(&slow, &["--link", "25GB", "--json"]).ok().json()["predicted"]["request_ns"].as_u64();
    assert!(slow > Some(request(&["--link", "25GB"])));
    let mut staging = spec();
    staging["machine"]["links"]["staging"] = json!(1_000_000_000);
    let staging = plan(&staging, &["--link", "25GB", "--json"]).ok().json()["predicted"]["request_ns"].as_u64();
    assert_eq!(staging, Some(request(&["--staging", "1GB"])));
    // Without links there are no times, and a link alone is enough for them.
    let mut none = spec();
    none["machine"]["links"] = Value::Null;
    assert_eq!(plan(&none, &["--json"]).ok().json()["predicted"], Value::Null);
    assert!(plan(&none, &["--link", "25GB", "--json"]).ok().json()["predicted"].is_object());
    plan(&none, &["--staging", "10GB"]).fails(2, &["--staging", "--link"]);
    none["machine"]["links"] = json!({"h2d": 0});
    plan(&none, &["--staging", "10GB"]).fails(2, &["--staging", "--link"]);
}

#[test]
fn rates_are_at_least_a_byte_per_second() {
    for flag in ["--link", "--staging"] {
        for (rate, says) in [("0", "at least one"), ("0GB", "at least one"), ("fast", "25GB"), ("-1GB", "negative")] {
            let answer = mm(["plan", SHAPES, flag, rate]).fails(2, &[flag]);
            assert!(answer.stderr.contains(says) || rate == "fast", "{}", answer.stderr);
        }
    }
}

#[test]
fn the_picture_shows_each_group_of_a_pass() {
    let svg = picture(&spec(), &[]);
    let document = Document::parse(&svg).expect("well-formed");
    let root = document.root_element();
    assert_eq!((root.tag_name().name(), root.attribute("width")), ("svg", Some("1000")));
    let (resident, streamed) = (bars(&document, "resident"), bars(&document, "streamed"));
    assert_eq!((resident.len(), streamed.len()), (24, 24));
    let placed = plan(&spec(), &["--json"]).ok().json()["components"][0]["stacks"][0]["resident"].clone();
    for (index, stays) in placed.as_array().expect("residents").iter().enumerate() {
        let says = format!("layers.{index} computes for 10.00 ms");
        assert_eq!(
            (resident.contains(&&*says), streamed.contains(&&*says)),
            (*stays == true, *stays == false),
            "{says}"
        );
    }
    // Within a pass each streamed group is copied once, for this pass or already for the next.
    let copies: Vec<_> = [bars(&document, "copy"), bars(&document, "copy next")].concat();
    let copied: BTreeSet<_> = copies.iter().filter_map(|says| says.split(' ').nth(2)).collect();
    let expected: BTreeSet<_> = streamed.iter().filter_map(|says| says.split(' ').next()).collect();
    assert_eq!(copied, expected);
    assert!(copies.iter().all(|says| says.contains("takes 16.00 ms")), "{copies:?}");
    let texts = texts(&document);
    for part in ["One request in ", "transformer, 28 passes", "transformer, pass 15 of 28", "vae", "24 of 48 groups"] {
        assert!(texts.contains(part), "{part:?} is not in {texts}");
    }
    for part in ["copy a group", "compute, resident group", "budget 22.35 GiB", "expected activations", "ms\n", "GiB\n"]
    {
        assert!(texts.contains(part), "{part:?} is not in {texts}");
    }
    assert!(!texts.contains("staging\n"), "no lane for what is not used");
    for node in document.descendants().filter(|node| node.has_tag_name("text")) {
        let x: f64 = node.attribute("x").and_then(|x| x.parse().ok()).expect("a place");
        assert!((0.0..=1000.0).contains(&x));
    }
}

#[test]
fn where_copies_are_slower_compute_waits() {
    let waits = |link: &str| {
        let svg = picture(&spec(), &["--link", link]);
        bars(&Document::parse(&svg).expect("well-formed"), "wait").len()
    };
    assert_eq!(waits("1000GB"), 0);
    assert!(waits("5GB") >= 20);
}

#[test]
fn staged_groups_have_a_lane_of_their_own() {
    let mut staged = spec();
    // No room for page-locked copies.
    staged["policy"]["ram_limit"] = json!(1_000_000_000);
    let placed = plan(&staged, &["--rule", "cost", "--strategy", "auto", "--json"]).ok().json();
    assert!(placed["components"].to_string().contains("\"staged\""), "{placed}");
    let svg = picture(&staged, &["--rule", "cost", "--strategy", "auto"]);
    let document = Document::parse(&svg).expect("well-formed");
    assert!(!bars(&document, "staging").is_empty() && texts(&document).contains("staging\n"));
}

#[test]
fn long_passes_are_shown_in_part() {
    let mut long = spec();
    long["components"][0]["stacks"] =
        json!([{"name": "layers", "groups": vec![json!({"bytes": 20_000_000, "compute_ns": 500_000}); 2000]}]);
    long["policy"] = json!({"strategy": "block_pin", "rule": "threshold", "resident": {"transformer": 1000}});
    let svg = picture(&long, &[]);
    let document = Document::parse(&svg).expect("well-formed");
    assert_eq!(bars(&document, "resident").len() + bars(&document, "streamed").len(), 240);
    assert!(texts(&document).contains("1000 of 2000 groups") && texts(&document).contains("are shown"));
    assert!(svg.len() < 200_000, "{} bytes", svg.len());
}

#[test]
fn extremes_are_drawn_too() {
    let name = "<&\"'\u{1}\u{202e}\u{1f600}".repeat(40);
    let huge = json!([{"name": name, "rest": u64::MAX / 4, "passes": u32::MAX,
        "stacks": [{"name": name, "groups": vec![json!({"bytes": 1u64 << 40, "compute_ns": u64::MAX}); 3]}]}]);
    let many: Vec<_> = (0..600).map(|i| json!({"name": format!("component_{i}"), "rest": i})).collect();
    let nothing = json!([{"name": "empty"}]);
    for (components, link) in
        [(&huge, "1"), (&huge, "100TB"), (&json!(many), "1kB"), (&nothing, "1"), (&json!([]), "1")]
    {
        let mut spec = spec();
        spec["components"] = components.clone();
        spec["policy"] = json!({"strategy": "model_offload"});
        let svg = picture(&spec, &["--link", link, "--vram", &u64::MAX.to_string()]);
        Document::parse(&svg).unwrap_or_else(|error| panic!("{error} in {svg}"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn a_checkpoint_is_drawn() {
    let folder = tempfile::tempdir().expect("a folder");
    let svg = file(&folder, "plan.SVG");
    let flags = ["--vram", "8MiB", "--link", "1GB", "--passes", "transformer=8", "--svg", text(&svg)];
    let answer = mm([&["plan", SHAPES, "--json"], &flags[..]].concat()).ok();
    assert!(answer.json()["predicted"].is_object(), "still one document");
    let table = mm([&["plan", SHAPES], &flags[..]].concat()).ok().stdout;
    assert!(table.contains("predicted: ") && table.contains("8 × "), "{table}");
    let svg = fs::read_to_string(svg).expect("reads");
    assert!(texts(&Document::parse(&svg).expect("well-formed")).contains("transformer, 8 passes"));
    // A device that is host memory has no tiers, and is drawn as well.
    let host = file(&folder, "host.svg");
    mm(["plan", SHAPES, "--device", "cpu", "--vram", "8MB", "--link", "5GB", "--svg", text(&host)]).ok();
    assert_eq!(names(folder.path()), ["host.svg", "plan.SVG"]);
}

/// Fails with this code, and whatever was there stays.
#[track_caller]
fn draws_nothing(spec: &str, flags: &[&str], code: i32, says: &[&str]) -> Answer {
    let folder = tempfile::tempdir().expect("a folder");
    let (new, old) = (file(&folder, "new.svg"), file(&folder, "old.svg"));
    fs::write(&old, "old").expect("writes");
    let call = |svg: &Path| mm_reading(&[&["plan", "--spec", "-", "--svg", text(svg)], flags].concat(), spec);
    call(&old).fails(code, says);
    let answer = call(&new).fails(code, says);
    assert_eq!(names(folder.path()), ["old.svg"]);
    assert_eq!(fs::read(&old).expect("reads"), b"old");
    answer
}

#[test]
fn where_nothing_can_be_drawn_nothing_is_written() {
    let mut spec = spec();
    let known = spec.to_string();
    draws_nothing(&known, &["--vram", "1GB"], 3, &["no plan fits"]);
    let lines = draws_nothing(&format!("{known}\n{known}\n"), &[], 2, &["--svg", "one plan"]);
    assert_eq!(lines.stdout, "", "told before the first answer");
    draws_nothing("{", &[], 4, &["bad spec"]);
    spec["machine"]["links"] = Value::Null;
    let answer = draws_nothing(&spec.to_string(), &["--json"], 2, &["--svg", "--link 25GB"]);
    assert_eq!(answer.json()["error"]["flag"], "--svg");
    spec["machine"]["links"] = json!({"h2d": 0});
    draws_nothing(&spec.to_string(), &[], 2, &["--svg", "--link 25GB"]);
    spec["machine"]["vram_free"] = Value::Null;
    draws_nothing(&spec.to_string(), &["--link", "25GB"], 2, &["--svg", "no device", "--vram 12GiB"]);
}

#[test]
fn a_picture_that_cannot_be_written_is_told_before_the_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = file(&folder, "no/plan.svg");
    mm(["plan", "/no/checkpoint", "--svg", text(&missing)]).fails(2, &[text(&missing), "cannot be written"]);
    mm(["plan", "/no/checkpoint", "--svg", "plan.png"]).fails(2, &["--svg", ".svg", "plan.png"]);
    assert!(names(folder.path()).is_empty());
}
