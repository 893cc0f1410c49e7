//! The sheet: shapes, texts and their colours, from top to bottom.

use std::collections::BTreeSet;
use svg::Document;
use svg::Node;
use svg::node::element::{Line, Path, Rectangle, Style, Text, Title};

pub(super) const WIDTH: f64 = 1000.0;
/// Where plots begin and end; names of lanes stand to the left.
pub(super) const LEFT: f64 = 86.0;
pub(super) const RIGHT: f64 = WIDTH - 24.0;

const STYLE: &str = "
text { font: 12px system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; fill: #24292f }
.title { font-size: 20px; font-weight: 600 } .head { font-size: 14px; font-weight: 600 }
.caption, .tick, .lane { fill: #57606a } .tick, .number { font-size: 11px } .inside { fill: #fff }
.halo { paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round }
.sheet { fill: #fff } .track { fill: #f3f4f6 } .visit { fill: #57606a }
.grid { stroke: #d8dee4 } .leader { stroke: #8c959f } .axis { stroke: #8c959f } .pass { stroke: #24292f; stroke-dasharray: 2 3 }
.resident { fill: #3b6ea5 } .streamed { fill: #e0791b } .copy { fill: #b8500f } .next { opacity: .4 }
.staging { fill: #2a9d8f } .load { fill: #7d5ba6 } .wait { fill: #f4c7c9 } .activation { fill: #cfe8d0 }
.memory { fill: #5a9e5d } .budget { stroke: #b42318; stroke-width: 1.5; stroke-dasharray: 6 4; fill: none }
";

/// What a shape stands for, each with its colour and its name in the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Paint {
    Load,
    Staging,
    Copy,
    Next,
    Streamed,
    Resident,
    Wait,
    Memory,
    Activation,
    Budget,
}

impl Paint {
    const fn class(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Staging => "staging",
            Self::Copy => "copy",
            Self::Next => "copy next",
            Self::Streamed => "streamed",
            Self::Resident => "resident",
            Self::Wait => "wait",
            Self::Memory => "memory",
            Self::Activation => "activation",
            Self::Budget => "budget",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Staging => "stage a group",
            Self::Copy => "copy a group",
            Self::Next => "paler: for the next pass",
            Self::Streamed => "compute, streamed group",
            Self::Resident => "compute, resident group",
            Self::Wait => "compute waits",
            Self::Memory => "weights and slots",
            Self::Activation => "expected activations",
            Self::Budget => "budget",
        }
    }
}

/// Where a text stands from its point on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A corner, a width and a height in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

pub(super) struct Sheet {
    document: Document,
    /// Where the next thing goes.
    pub(super) y: f64,
    used: BTreeSet<Paint>,
}

impl Sheet {
    pub(super) fn new(title: &str) -> Self {
        let mut sheet = Self { document: Document::new(), y: 34.0, used: BTreeSet::new() };
        sheet.document.append(Title::new(clean(title)));
        sheet.document.append(Style::new(STYLE));
        let all = Rectangle::new().set("class", "sheet").set("width", "100%").set("height", "100%");
        sheet.document.append(all);
        sheet.text("title", (24.0, sheet.y), Anchor::Start, title);
        sheet.y += 6.0;
        sheet
    }

    /// A line of text below what there is.
    pub(super) fn caption(&mut self, text: &str) {
        self.y += 18.0;
        self.text("caption", (24.0, self.y), Anchor::Start, &fit(text, 12.0, RIGHT - 24.0).unwrap_or_default());
    }

    /// A part's head, with room above.
    pub(super) fn head(&mut self, text: &str) {
        self.y += 36.0;
        self.text("head", (24.0, self.y), Anchor::Start, &fit(text, 14.0, RIGHT - 24.0).unwrap_or_default());
    }

    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let mut element = Text::new(clean(text)).set("class", class).set("x", px(x)).set("y", px(y));
        match anchor {
            Anchor::Start => {}
            Anchor::Middle => element.assign("text-anchor", "middle"),
            Anchor::End => element.assign("text-anchor", "end"),
        }
        self.document.append(element);
    }

    /// A rectangle that stands for something; pointed at, it says what.
    pub(super) fn bar(&mut self, paint: Paint, area: Area, says: &str) {
        self.used.insert(paint);
        self.document.append(rectangle(&format!("bar {}", paint.class()), area).add(Title::new(clean(says))));
    }

    /// The same for the next pass.
    pub(super) fn pale_bar(&mut self, paint: Paint, area: Area, says: &str) {
        self.used.extend([paint, Paint::Next]);
        self.document.append(rectangle(&format!("bar {} next", paint.class()), area).add(Title::new(clean(says))));
    }

    /// A rectangle that is part of the scenery.
    pub(super) fn rectangle(&mut self, class: &str, area: Area) {
        self.document.append(rectangle(class, area));
    }

    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let line = Line::new().set("class", class);
        self.document.append(line.set("x1", px(from.0)).set("y1", px(from.1)).set("x2", px(to.0)).set("y2", px(to.1)));
    }

    /// Filled areas that stand for the same thing, as one shape.
    pub(super) fn areas(&mut self, paint: Paint, areas: impl IntoIterator<Item = Area>) {
        let outline = |area: Area| {
            let Area { x, y, width, height } = area;
            format!("M{} {}h{}v{}h{}z", px(x), px(y), px(width), px(height), px(-width))
        };
        let data: String = areas.into_iter().map(outline).collect();
        if !data.is_empty() {
            self.used.insert(paint);
            self.document.append(Path::new().set("class", paint.class()).set("d", data));
        }
    }

    pub(super) fn budget(&mut self, y: f64, text: &str) {
        self.used.insert(Paint::Budget);
        self.line("budget", (LEFT, y), (RIGHT, y));
        self.text("tick halo", (RIGHT - 4.0, y - 5.0), Anchor::End, text);
    }

    /// The document, with a legend of what was drawn.
    pub(super) fn finish(mut self) -> String {
        self.legend();
        let height = px(self.y + 20.0);
        let document = self.document.set("viewBox", (0, 0, WIDTH, height)).set("width", WIDTH).set("height", height);
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{document}\n")
    }

    fn legend(&mut self) {
        let mut x = 24.0;
        self.y += if self.used.is_empty() { 0.0 } else { 34.0 };
        for paint in self.used.clone() {
            let width = 20.0 + text_width(paint.meaning(), 12.0) + 14.0;
            if x + width > RIGHT {
                (x, self.y) = (24.0, self.y + 20.0);
            }
            let y = self.y;
            if paint == Paint::Budget {
                self.line("budget", (x, y - 4.0), (x + 14.0, y - 4.0));
            } else {
                let area = Area { x, y: y - 10.0, width: 12.0, height: 12.0 };
                self.document.append(rectangle(&format!("key {}", paint.class()), area));
            }
            self.text("key", (x + 18.0, y), Anchor::Start, paint.meaning());
            x += width;
        }
    }
}

fn rectangle(class: &str, area: Area) -> Rectangle {
    let Area { x, y, width, height } = area;
    let element = Rectangle::new().set("class", class).set("x", px(x)).set("y", px(y));
    element.set("width", px(width.max(0.0))).set("height", px(height.max(0.0)))
}

/// To a hundredth of a pixel.
fn px(value: f64) -> f64 {
    // Adding zero turns -0 into 0.
    (value * 100.0).round() / 100.0 + 0.0
}

/// What may stand in XML: names are the user's.
fn clean(text: &str) -> String {
    let replace = |c: char| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c };
    text.chars().map(replace).collect()
}

/// Pixels that a text takes at the most in usual fonts.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        ' ' | ',' | '.' | ':' | ';' | 'i' | 'j' | 'l' => 0.33,
        't' | 'f' | 'r' => 0.42,
        'm' | 'w' | 'M' | 'W' => 0.9,
        c if c.is_ascii_uppercase() => 0.7,
        c if c.is_ascii() => 0.6,
        _ => 1.0,
    };
    text.chars().map(em).sum::<f64>() * size
}

/// The text, cut short where it is wider than this; `None`: not worth writing.
pub(super) fn fit(text: &str, size: f64, width: f64) -> Option<String> {
    if text_width(text, size) <= width {
        return Some(text.to_owned());
    }
    let mut short: String = text.chars().take(400).collect();
    while short.chars().count() > 4 {
        short.pop();
        let cut = format!("{}…", short.trim_end());
        if text_width(&cut, size) <= width {
            return Some(cut);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_to_their_room() {
        assert_eq!(fit("vae", 12.0, 100.0).as_deref(), Some("vae"));
        assert_eq!(fit("vae", 12.0, 10.0), None);
        let cut = fit("transformer", 12.0, 60.0).expect("room for some of it");
        assert!(cut.starts_with("tran") && cut.ends_with('…') && text_width(&cut, 12.0) <= 60.0, "{cut}");
        assert!(fit(&"x".repeat(100_000), 12.0, 100.0).is_some());
    }

    #[test]
    fn names_do_no_harm() {
        let mut sheet = Sheet::new("<&\u{0}\u{1b}\u{ffff}\">");
        sheet.bar(Paint::Copy, Area { x: 0.0, y: 0.0, width: -1.0, height: f64::MIN_POSITIVE }, "</title>&amp;");
        let text = sheet.finish();
        let document = roxmltree::Document::parse(&text).expect("XML");
        let title = document.descendants().find(|node| node.has_tag_name("title")).and_then(|node| node.text());
        assert_eq!(title, Some("<&\u{fffd}\u{fffd}\u{fffd}\">"));
    }
}
