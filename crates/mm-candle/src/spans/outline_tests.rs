use super::*;

/// `weight.name` or `#line` per word.
fn events(text: &str) -> Vec<Event> {
    let event = |word: &str| match word.strip_prefix('#') {
        Some(line) => Event::Span(line.parse().unwrap()),
        None => Event::Weight(word.to_owned()),
    };
    text.split_whitespace().map(event).collect()
}

fn outline(text: &str) -> Outline {
    Outline::new(&events(text), |_| 100)
}

/// Per span, in the order in which they were made, the path of its group.
fn paths(outline: &Outline) -> Vec<&str> {
    outline.spans.iter().map(|group| group.map_or("-", |group| outline.paths[group].as_str())).collect()
}

#[test]
fn spans_made_after_the_weights_are_of_the_block_before_them() {
    // Line 1 makes a layer's, 2 a block's, 3 the stack's.
    let text = "embed.w h.0.a.w #1 h.0.b.w #1 #2 h.1.a.w #1 h.1.b.w #1 #2 norm.w #1 #3";
    let outline = outline(text);
    assert_eq!(paths(&outline), ["h.0", "h.0", "h.0", "h.1", "h.1", "h.1", "-", "-"]);
    assert_eq!(outline.stacks, [("h".to_owned(), 2)]);
    assert_eq!(outline.weights.len(), 4);
    assert_eq!(outline.weights["h.1.b.w"], 1);
}

#[test]
fn spans_made_before_the_weights_are_of_the_block_after_them() {
    // As llama's: line 1 a block's, 2 its attention's; 3 a norm's, before its weight; 4 a linear layer's, after.
    let text = "embed.w #1 #2 h.0.q.w #4 #3 h.0.n.w #1 #2 h.1.q.w #4 #3 h.1.n.w #3 norm.w";
    assert_eq!(paths(&outline(text)), ["h.0", "h.0", "h.0", "h.0", "h.1", "h.1", "h.1", "h.1", "-"]);
}

#[test]
fn a_block_may_begin_with_more_spans_than_modules() {
    // As whisper's: line 1 a block's, 2 to 4 of its attention, which all come before the first weight.
    let block = |i| format!("#1 #2 #3 #4 h.{i}.q.w #5 h.{i}.n.w ");
    let outline = outline(&format!("in.w {}{}out.w", block(0), block(1)));
    assert_eq!(paths(&outline), [["h.0"; 5], ["h.1"; 5]].concat());
}

#[test]
fn one_span_more_after_the_last_of_equal_blocks_is_not_its() {
    // Each ends with a layer that has no span, so two spans could be of the last: its own (1), and its level's (2).
    let outline = outline("in.w a.0.r.0.x.w a.0.r.0.y.w #1 a.0.r.1.x.w a.0.r.1.y.w #1 #2 out.w");
    assert_eq!(paths(&outline), ["a.0.r.0", "a.0.r.1", "-"]);
}

#[test]
fn the_spans_of_what_contains_the_last_block_are_not_the_blocks() {
    // After the last entry come its own span (2), then its level's (3) and the model's (4).
    let text = "a.0.r.0.c.w #2 a.0.r.1.c.w #2 #3 a.1.r.0.c.w #2 a.1.r.1.c.w #2 #3 #4";
    assert_eq!(
        paths(&outline(text)),
        ["a.0.r.0", "a.0.r.1", "-", "a.1.r.0", "a.1.r.1", "-", "-"],
        "two levels of two give way to what they hold"
    );
}

#[test]
fn a_long_stack_is_not_looked_into() {
    let block = |i| format!("h.{i}.x.0.a.w h.{i}.x.1.b.w #1 ");
    let text: String = (0..8).map(block).collect();
    let outline = outline(&text);
    assert_eq!(outline.stacks, [("h".to_owned(), 8)]);
}

#[test]
fn what_is_asked_for_twice_stays_with_the_rest() {
    let outline = outline("tied.w h.0.a.w h.0.b.w #1 h.1.a.w h.1.b.w #1 h.0.a.w");
    assert!(!outline.weights.contains_key("h.0.a.w") && !outline.weights.contains_key("tied.w"));
    assert_eq!(outline.weights["h.0.b.w"], 0);
}

#[test]
fn a_block_that_others_load_in_between_is_no_group() {
    let outline = outline("h.0.a.w #1 h.1.a.w #1 h.0.b.w #1 h.1.b.w #1");
    assert!(outline.paths.is_empty());
}

#[test]
fn groups_are_in_the_order_of_their_stacks() {
    let outline = outline("m.r.0.w #1 m.a.0.w #1 m.r.1.w #1 m.a.1.w #1");
    assert_eq!(outline.paths, ["m.r.0", "m.r.1", "m.a.0", "m.a.1"]);
    assert_eq!(paths(&outline), ["m.r.0", "m.a.0", "m.r.1", "m.a.1"]);
}

#[test]
fn nothing_comes_of_nothing() {
    for text in ["", "#1 #2", "a.w b.w", "a.0.w a.1.w", "0 1 #1", ". .. #1 .0. #1"] {
        let outline = outline(text);
        assert!(outline.spans.len() <= 2, "{text}");
        assert!(outline.weights.values().all(|group| *group < outline.paths.len()), "{text}");
    }
}

#[test]
fn a_level_of_convolutions_is_told_from_its_blocks() {
    // As a UNet's: line 1 makes a convolution's, before its weights; 2 a block's, 3 a sampler's, 4 the level's, all after.
    let block = |path: &str| format!("{path}.n.w #1 {path}.a.w {path}.m.w #1 {path}.b.w {path}.t.w #2 ");
    let sampler = |path: &str| format!("#1 {path}.c.w #3 ");
    let level = |i, more| format!("{}{}{}#4 ", block(&format!("d.{i}.r.0")), block(&format!("d.{i}.r.1")), more);
    let text = format!("#1 in.w {}{}#1 out.w", level(0, sampler("d.0.s.0")), level(1, String::new()));
    let outline = outline(&text);
    let block = |path| [path; 3];
    let expected: Vec<&str> = [
        &["-"][..],
        &block("d.0.r.0"),
        &block("d.0.r.1"),
        &["d.0.s.0", "d.0.s.0", "-"],
        &block("d.1.r.0"),
        &block("d.1.r.1"),
        &["-", "-"],
    ]
    .concat();
    assert_eq!(paths(&outline), expected, "{:?}", outline.paths);
}
