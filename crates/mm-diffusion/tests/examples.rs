//! The numbered examples run, and make what they say.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// An example lies beside the tests: `cargo test` builds all of them, `cargo test --test examples` none.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().expect("a path");
    let program = tests.ancestors().nth(2).expect("a folder").join("examples").join(name);
    assert!(program.exists(), "{} is missing: cargo build --workspace --examples", program.display());
    Command::new(program)
}

fn prints(command: &mut Command) -> String {
    let output = command.output().expect("starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn image(file: &Path) -> image::RgbImage {
    image::open(file).expect("an image").to_rgb8()
}

/// Whether it shows what the README's picture shows: a red shape at the left, white at the right.
fn is_red_at_the_left(image: &image::RgbImage) -> bool {
    let red = |[r, g, b]: [u8; 3]| r > 150 && g < 110 && b < 110;
    let white = |[r, g, b]: [u8; 3]| r > 200 && g > 200 && b > 200;
    red(image.get_pixel(16, 32).0) && white(image.get_pixel(56, 32).0)
}

/// White inside what is red around.
fn is_an_outline(image: &image::RgbImage) -> bool {
    let [r, g, b] = image.get_pixel(15, 30).0;
    r > 200 && g > 180 && b > 180 && image.pixels().any(|p| p.0[0] > 150 && p.0[2] < 110)
}

#[test]
fn one_model_brings_the_picture_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.png");
    prints(example("01-one-model").arg(root().join("docs/red-circle.png")).arg(&out));
    assert!(is_red_at_the_left(&image(&out)));
}

#[test]
fn a_pipeline_draws_what_it_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.png");
    let said = prints(example("02-pipeline").arg("a large red circle at the left on a white background").arg(&out));
    assert!(is_red_at_the_left(&image(&out)));
    assert!(said.contains("transformer 8/8"), "{said}");
}

#[test]
fn two_pipelines_share_an_encoder_and_draw_each_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = prints(example("03-shared-encoder").arg(folder.path()));
    for line in ["text_encoder: one of both", "transformer: one for each", "vae: one of both"] {
        assert!(said.contains(line), "{said}");
    }
    let [shapes, outlines] = ["shapes.png", "outlines.png"].map(|name| image(&folder.path().join(name)));
    assert!(is_red_at_the_left(&shapes));
    assert!(is_an_outline(&outlines));
}

#[test]
fn a_lora_makes_outlines_and_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = prints(example("05-lora").arg(folder.path()));
    assert!(said.contains("transformer: 98 weights changed"), "{said}");
    let [shape, outline] = ["shape.png", "outline.png"].map(|name| image(&folder.path().join(name)));
    assert!(is_red_at_the_left(&shape));
    assert!(is_an_outline(&outline));
}

#[test]
fn blocks_of_ones_own_stream() {
    let said = prints(&mut example("04-blocks"));
    assert!(said.starts_with("the very same output"), "{said}");
}

/// Ends with the test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_draws_with_three_pipelines() {
    let mut server =
        Server(example("06-server").args(["127.0.0.1:0", "4"]).stdout(Stdio::piped()).spawn().expect("starts"));
    let mut said = BufReader::new(server.0.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    let address = line.strip_prefix("http://").and_then(|l| l.split(' ').next()).expect("an address").to_owned();
    let get = &|path: &str| {
        let mut stream = TcpStream::connect(&address).expect("connects");
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("asks");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        (String::from_utf8_lossy(&answer[..head]).into_owned(), answer[head + 4..].to_vec())
    };
    let drawn = std::thread::scope(|scope| {
        let paths = ["zimage", "flux", "sd3"];
        let asked = paths.map(|name| {
            scope.spawn(move || get(&format!("/{name}?prompt=a+large+red+circle+at+the+left+on+a+white+background")))
        });
        asked.map(|answer| answer.join().expect("an answer"))
    });
    let drawn = drawn.map(|(head, body)| {
        assert!(head.contains(" 200 "), "{head}");
        image::load_from_memory(&body).expect("an image").to_rgb8()
    });
    assert!(is_red_at_the_left(&drawn[0]));
    let (head, body) = get("/nothing");
    assert!(head.contains(" 400 ") && String::from_utf8_lossy(&body).contains("zimage"), "{head}");
    // That was the fourth.
    assert!(server.0.wait().expect("ends").success());
}
