//! Specs, on their own and one a line.

mod common;

use common::{mm, mm_reading, text};
use serde_json::{Value, json};
use std::fs;

const ROWS: &str = include_str!("../../mm-plan/tests/data/diffusers-mm.jsonl");

fn spec(vram: u64) -> Value {
    json!({"schema": 1, "machine": {"vram_free": vram}, "components": [{"name": "vae", "rest": 100}]})
}

#[test]
fn sixty_specs_in_one_call_are_decided_as_diffusers_mm_decided() {
    let rows: Vec<Value> = ROWS.lines().map(|row| serde_json::from_str(row).expect("JSON")).collect();
    let lines: Vec<String> = rows.iter().map(|row| row["spec"].to_string()).collect();
    let plans = mm_reading(&["plan", "--spec", "-"], &lines.join("\n")).ok().lines();
    assert_eq!((rows.len(), plans.len()), (60, 60));
    for (row, plan) in rows.iter().zip(&plans) {
        let expected = &row["expect"];
        assert_eq!(plan["strategy"], expected["strategy"], "{row}");
        if !expected["low_cpu_mem"].is_null() {
            assert_eq!(plan["low_cpu_mem"], expected["low_cpu_mem"], "{row}");
        }
        for (name, count) in expected["resident"].as_object().into_iter().flatten() {
            let parts = plan["components"].as_array().expect("components");
            let part = parts.iter().find(|part| part["name"] == *name).expect("the component");
            let resident = part["stacks"][0]["resident"].as_array().expect("residents").iter().filter(|r| **r == true);
            assert_eq!(json!(resident.count()), *count, "{row}");
        }
    }
}

#[test]
fn a_bad_line_is_answered_and_the_rest_still_run() {
    let text = format!("{}\nnonsense\n\n{}\n{}\n", spec(1000), spec(10), spec(1000));
    let answer = mm_reading(&["plan", "--spec", "-"], &text).fails(4, &["line 2", "line 4"]);
    let lines = answer.lines();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[0]["strategy"], &lines[3]), (&json!("no_offload"), &lines[0]));
    assert_eq!((&lines[1]["schema"], &lines[1]["error"]["code"]), (&json!(1), &json!("bad_spec")));
    assert_eq!(lines[1]["error"]["line"], 2);
    assert_eq!(lines[2]["error"]["code"], "never_fits");
    assert_eq!((&lines[2]["error"]["component"], &lines[2]["error"]["need"]), (&json!("vae"), &json!(100)));
}

#[test]
fn a_line_that_is_no_text_is_bad_and_the_rest_still_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("specs");
    let good = spec(1000).to_string();
    fs::write(&path, [good.as_bytes(), b"\n{\"\xff\": 1}\r\n", good.as_bytes()].concat()).expect("writes");
    let lines = mm(["plan", "--spec", text(&path)]).fails(4, &["line 2"]).lines();
    let codes: Vec<_> = lines.iter().map(|line| line["error"]["code"].clone()).collect();
    assert_eq!(codes, [Value::Null, json!("bad_spec"), Value::Null]);
}

#[test]
fn the_exit_code_is_that_of_the_worst_line() {
    let code = |lines: &[String]| mm_reading(&["plan", "--spec", "-"], &lines.join("\n")).code;
    let (good, tight, bad) = (spec(1000).to_string(), spec(10).to_string(), "{\"schema\": 1,".to_owned());
    assert_eq!(code(&[good.clone(), good.clone()]), 0);
    assert_eq!(code(&[tight.clone(), good.clone()]), 3);
    assert_eq!(code(&[bad.clone(), tight.clone(), good.clone()]), 4);
    assert_eq!(code(&[good, tight, bad]), 4);
}

#[test]
fn what_would_fit_an_empty_device_is_not_now() {
    let mut spec = spec(10);
    spec["machine"]["vram_total"] = json!(1000);
    let answer = mm_reading(&["plan", "--spec", "-", "--json"], &spec.to_string()).fails(3, &["free now"]);
    assert_eq!(answer.json()["error"]["code"], "not_now");
}

#[test]
fn a_document_may_span_lines_and_come_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spec.json");
    fs::write(&path, format!("{:#}\n", spec(1000))).expect("writes");
    let plan = mm(["plan", "--spec", text(&path), "--json"]).ok().json();
    assert_eq!((&plan["schema"], &plan["strategy"]), (&json!(1), &json!("no_offload")));
    assert!(mm(["plan", "--spec", text(&path)]).ok().stdout.starts_with("no_offload: at most 100 B"));
    let tight = mm(["plan", "--spec", text(&path), "--vram", "99", "--json"]).fails(3, &["--vram 100"]);
    assert_eq!(tight.json()["error"]["smallest"], 100);
}

#[test]
fn what_is_wrong_with_a_spec_is_named() {
    let says = |edit: fn(&mut Value), part: &str| {
        let mut spec = spec(1000);
        edit(&mut spec);
        let answer = mm_reading(&["plan", "--spec", "-", "--json"], &spec.to_string()).fails(4, &[part]);
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], "bad_spec");
        assert!(error["text"].as_str().is_some_and(|text| text.contains(part)), "{error}");
    };
    says(|s| s["machine"]["vrm_free"] = json!(1), "`vrm_free`");
    says(|s| s["policy"]["working_sets"] = json!(1), "`working_sets`");
    says(|s| s["components"][0]["blocks"] = json!(1), "`blocks`");
    says(|s| s["colour"] = json!("red"), "`colour`");
    says(|s| s["schema"] = json!(2), "`schema`");
    says(|s| s["policy"]["strategy"] = json!("fast"), "`fast`");
    says(|s| s["machine"]["vram_free"] = json!(-1), "-1");
    says(|s| s["components"][0]["name"] = json!(""), "no name");
    says(|s| s["components"][0]["same_as"] = json!("unet"), "`unet`");
    for (text, part) in
        [("", "EOF"), ("{", "EOF"), ("[]", "expected struct Spec"), ("{\n \"schema\": 1\n \"x\"\n}", "line 3")]
    {
        mm_reading(&["plan", "--spec", "-"], text).fails(4, &["bad spec", part]);
    }
    mm(["plan", "--spec", "/no/such/spec.json"]).fails(4, &["/no/such/spec.json", "cannot be read"]);
}
