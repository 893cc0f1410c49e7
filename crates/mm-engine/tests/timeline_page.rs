//! The recording as documents: a page that needs nothing else, and a Chrome trace that is read back as it was.

mod common;

use common::{host::component, machine, policy};
use mm_engine::{
    Device, HostDevice, ModelManager,
    timeline::{Event, Form, Kind, Label, Timeline, Trace},
};
use mm_plan::{DType, Strategy};
use serde_json::Value;
use std::{collections::BTreeMap, io::ErrorKind, path::Path, sync::Arc};

fn label(component: &str, group: &str) -> Label {
    Label { component: component.into(), group: group.into() }
}

/// One of each kind and more, in two lanes, with overlaps in one.
fn recorded() -> Timeline {
    let timeline = Timeline::new(1000);
    let (whole, group) = (label("transformer", ""), label("transformer", "layers.3"));
    let start = timeline.now();
    timeline.allocated(4096, 4096);
    timeline.span(Kind::Wait, 0, &whole, start, 0);
    for i in 0..5 {
        timeline.span(Kind::Copy, i % 2, &group, timeline.now(), 4096 + i as u64 / 2);
        timeline.span(Kind::Stage, 0, &group, timeline.now(), 4096);
        timeline.span(Kind::Stall, 0, &group, start, 0);
        timeline.span(Kind::Compute, 0, &group, start, 0);
        timeline.allocated(512, 4608 + i as u64);
    }
    timeline.span(Kind::Pass, 0, &whole, start, 0);
    timeline.span(Kind::Pass, 0, &label("vae", ""), start, 0);
    timeline.freed(4096, u64::MAX);
    timeline
}

/// What the page's script would read.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once(r#"<script type="application/json" id="data">"#).unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
}

fn sums(list: &Value) -> Vec<u64> {
    numbers(list).into_iter().scan(0, |sum, step| (*sum += step, Some(*sum)).1).collect()
}

/// Kind, lane, component, group, start, end, bytes.
type Told = (String, u64, String, String, u64, u64, u64);

fn told(data: &Value) -> Vec<Told> {
    let mut all = Vec::new();
    for row in data["rows"].as_array().unwrap() {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (start, duration, labels) = (sums(&row["start"]), numbers(&row["duration"]), numbers(&row["label"]));
        let size = numbers(&row["size"]);
        assert_eq!((start.len(), labels.len()), (duration.len(), duration.len()));
        for i in 0..start.len() {
            let label = &data["labels"][labels[i] as usize];
            let component = text(&data["components"][label[0].as_u64().unwrap() as usize]);
            let bytes = size.get(i).map_or(0, |size| data["sizes"][*size as usize].as_u64().unwrap());
            let (lane, end) = (row["lane"].as_u64().unwrap(), start[i] + duration[i]);
            all.push((text(&row["kind"]), lane, component, text(&label[1]), start[i], end, bytes));
        }
    }
    all.sort();
    all
}

fn logged(events: &[Event]) -> Vec<Told> {
    let origin = events.iter().map(|event| event.start_ns).min().unwrap();
    let spans = events.iter().filter_map(|event| {
        let label = event.label.as_ref()?;
        let (component, group) = (label.component.to_string(), label.group.to_string());
        let (start, end) = (event.start_ns - origin, event.end_ns - origin);
        Some((event.kind.name().to_owned(), event.lane as u64, component, group, start, end, event.bytes))
    });
    let mut all: Vec<Told> = spans.collect();
    all.sort();
    all
}

#[test]
fn the_page_holds_every_event() {
    let timeline = recorded();
    let data = data(&timeline.trace(8192, 4608).to_html());
    let events = timeline.events();
    assert_eq!(told(&data), logged(&events));
    let levels: Vec<&Event> = events.iter().filter(|event| event.in_use.is_some()).collect();
    let origin = events.iter().map(|event| event.start_ns).min().unwrap();
    assert_eq!(sums(&data["memory"]["at"]), levels.iter().map(|e| e.start_ns - origin).collect::<Vec<_>>());
    assert_eq!(numbers(&data["memory"]["in_use"]), levels.iter().map(|e| e.in_use.unwrap()).collect::<Vec<_>>());
    assert_eq!(data["summary"]["peak"]["planned_device"], 4608);
    assert_eq!(data["summary"]["peak"]["budget"], 8192);
    let lanes: BTreeMap<&str, usize> =
        data["rows"].as_array().unwrap().iter().fold(BTreeMap::new(), |mut lanes, row| {
            *lanes.entry(row["kind"].as_str().unwrap()).or_default() += 1;
            lanes
        });
    assert_eq!(lanes["copy"], 2, "a row per copy lane");
    assert!(lanes["compute"] > 1, "computes that overlap are told apart");
}

#[test]
fn the_page_needs_nothing_else() {
    let page = recorded().trace(8192, 4608).to_html();
    for outside in ["http:", "https:", "//cdn", "src=", "href=", "@import", "url(", "import(", "fetch(", "XMLHttp"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
    assert!(!page.contains("<!--"), "every placeholder is filled");
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));
    assert_eq!((page.matches("<style").count(), page.matches("</style").count()), (1, 1));
    assert!(page.trim_end().ends_with("</html>"));
}

#[test]
fn names_do_no_harm() {
    let hostile = [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>--><!--data-->",
        "\"\\'`${x}\u{2028}\u{2029}\u{0}\u{7f}\u{202e}",
        "",
        "&lt;b&gt;",
    ];
    let timeline = Timeline::new(100);
    for name in hostile {
        timeline.span(Kind::Compute, 0, &label(name, name), timeline.now(), 1);
    }
    let trace = timeline.trace(0, 0);
    for page in [trace.to_html(), Trace::parse(trace.render(Form::Chrome).as_bytes()).unwrap().to_html()] {
        assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));
        assert!(!page.contains("<!--"));
        assert_eq!(told(&data(&page)), logged(&timeline.events()));
    }
}

#[test]
fn an_empty_timeline_is_a_page_too() {
    let page = Timeline::new(0).trace(0, 0).to_html();
    let data = data(&page);
    assert_eq!((told(&data), &data["summary"]["duration_ns"]), (vec![], &Value::from(0)));
    assert_eq!(data["memory"]["at"], Value::Array(vec![]));
}

#[test]
fn events_that_were_dropped_are_told() {
    let timeline = Timeline::new(3);
    for _ in 0..10 {
        timeline.span(Kind::Copy, 0, &label("vae", "rest"), 0, 1);
    }
    let trace = timeline.trace(0, 0);
    assert_eq!((trace.summary().dropped_events, trace.summary().all.copied_bytes), (7, 3));
    assert_eq!(data(&trace.to_html())["summary"]["dropped_events"], 7);
}

#[test]
fn a_chrome_trace_is_read_back_as_it_was() {
    let trace = recorded().trace(8192, 4608);
    let document = trace.render(Form::Chrome);
    assert_eq!(Trace::parse(document.as_bytes()).unwrap(), trace);
    assert_eq!(serde_json::from_str::<Value>(&document).unwrap(), trace.to_json());
    let names: Vec<Value> =
        trace.to_json()["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "M").cloned().collect();
    let names: Vec<&str> = names.iter().map(|e| e["args"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pass", "compute", "stall", "wait", "stage", "copy", "copy 1"]);
}

#[test]
fn many_lanes_and_events_at_the_end_of_time_are_still_a_page() {
    let other = r#""otherData": {"schema": 1, "budget": 18446744073709551615, "planned": 0}"#;
    let events: Vec<String> = (0..200u64)
        .map(|i| {
            format!(r#"{{"ph": "X", "cat": "copy", "tid": {}, "ts": 9e14, "dur": 9e14}}"#, 300 + i * 1_000_000_007)
        })
        .collect();
    let document = format!(r#"{{"traceEvents": [{}], {other}}}"#, events.join(","));
    let data = data(&Trace::parse(document.as_bytes()).unwrap().to_html());
    assert_eq!(told(&data).len(), 200);
    assert!(data["rows"].as_array().unwrap().len() <= 32);
}

#[test]
fn nothing_is_logged_while_recording_is_off() {
    let timeline = Arc::new(Timeline::default());
    let device = HostDevice::new(1 << 20, timeline.clone());
    timeline.set_recording(false);
    device.free(device.allocate(DType::U8, 256).unwrap());
    timeline.span(Kind::Copy, 0, &label("vae", ""), 0, 1);
    assert!(timeline.events().is_empty() && !timeline.is_recording());
    timeline.set_recording(true);
    device.free(device.allocate(DType::U8, 256).unwrap());
    assert_eq!(timeline.events().len(), 2);
}

#[test]
fn memory_held_while_building_is_on_the_curve() {
    let timeline = Arc::new(Timeline::default());
    let device = Arc::new(HostDevice::new(1 << 20, timeline.clone()));
    let mut reservation = device.reserve(0);
    reservation.grow(100);
    reservation.grow(28);
    drop(reservation);
    let curve: Vec<u64> = timeline.events().iter().map(|event| event.in_use.unwrap()).collect();
    assert_eq!(curve, [100, 128, 0]);
}

#[test]
fn a_manager_writes_what_its_file_is_called() {
    let timeline = Arc::new(Timeline::default());
    let device = Arc::new(HostDevice::new(1 << 20, timeline.clone()));
    let (module, _shelf) = component(&device, &timeline, 4);
    let manager = ModelManager::new(device, timeline, machine(1 << 20), policy(Strategy::GroupOffload)).unwrap();
    let registration = manager.register("transformer", &module).unwrap();
    for _ in 0..2 {
        let run = manager.begin(&module).unwrap();
        (0..4).for_each(|group| drop(module.lease(group).unwrap()));
        run.complete().unwrap();
    }
    let planned = manager.plan().unwrap().peak.device;
    drop(registration);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    manager.record_timeline(path("t.json")).unwrap();
    manager.record_timeline(path("t.HTML")).unwrap();
    let trace = Trace::parse(&std::fs::read(path("t.json")).unwrap()).unwrap();
    let page = std::fs::read_to_string(path("t.HTML")).unwrap();
    assert_eq!(page, trace.to_html());
    let peak = trace.summary().peak;
    assert_eq!((peak.planned_device, peak.device, peak.budget), (planned, planned, 1 << 20));
    let waits = told(&data(&page)).into_iter().filter(|event| event.0 == "wait").count();
    assert_eq!(waits, 1, "only the first pass had to be put on the device");
    for name in ["t.svg", "t", ".html"] {
        assert_eq!(manager.record_timeline(path(name)).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        assert!(!path(name).exists());
    }
    assert_eq!(Form::of(Path::new("a.Json")), Some(Form::Chrome));
}
