//! A server that keeps three pipelines on one small device.
//!
//! `cargo run --release -p mm-diffusion --example 06-server [address [requests]]`, then
//! `curl 'http://127.0.0.1:8080/zimage?prompt=a+red+circle' -o out.png`; `/flux` and `/sd3` are small ones of random weights.

use mm_candle::Manager;
use mm_diffusion::{Folder, LoadOptions, Pipeline, Request};
use mm_fixtures::{Fill, Fixture, Model, Options};
use mm_plan::Policy;
use std::{collections::BTreeMap, env::args, io::Cursor, path::Path, thread};
use tiny_http::{Header, Method, Response, Server};

/// Bytes of weights that may be in memory at once, of all three pipelines.
const BUDGET: u64 = 12 << 20;
/// Requests that are worked on at once. Each runs its own pass; who doesn't fit beside the others waits for its turn.
const WORKERS: usize = 3;

fn main() -> anyhow::Result<()> {
    let address = args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".into());
    // After so many it ends; by itself it doesn't.
    let requests = args().nth(2).map_or(Ok(usize::MAX), |count| count.parse())?;

    let manager = Manager::cpu(mm_probe::probe().host_machine(Some(BUDGET)), Policy::default())?;
    let scratch = tempfile::tempdir()?;
    let pipelines = pipelines(&manager, scratch.path())?;

    let server = Server::http(&address).map_err(|error| anyhow::anyhow!("{address}: {error}"))?;
    println!("http://{} serves {}", server.server_addr(), pipelines.keys().copied().collect::<Vec<_>>().join(", "));
    let left = std::sync::atomic::AtomicUsize::new(requests);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                use std::sync::atomic::Ordering::Relaxed;
                while left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
                    let Ok(request) = server.recv() else { return };
                    let (status, kind, body) = match answer(&pipelines, request.method(), request.url()) {
                        Ok(png) => (200, "image/png", png),
                        Err(error) => (400, "text/plain", format!("{error}\n").into_bytes()),
                    };
                    let kind = Header::from_bytes("Content-Type", kind).expect("a header");
                    // Whoever asked may be gone: nothing to do about it.
                    let _ = request.respond(Response::from_data(body).with_status_code(status).with_header(kind));
                }
            });
        }
    });
    println!("{} bytes of weights at the peak", manager.memory().peak);
    Ok(())
}

/// The demo, and two that this writes into `scratch`. What two of them share would be loaded once.
fn pipelines(manager: &Manager, scratch: &Path) -> anyhow::Result<BTreeMap<&'static str, Pipeline>> {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes");
    let mut folders = vec![("zimage", shapes)];
    for (name, model) in [("flux", Model::FluxDev), ("sd3", Model::Sd35Large)] {
        let small = Options { layers: Some(2), dim: Some(64), scale: 0.0001, fill: Fill::Random, ..Options::default() };
        Fixture::new(model, &small)?.write(&scratch.join(name))?;
        folders.push((name, scratch.join(name)));
    }
    let load = |(name, folder): (&'static str, _)| {
        let options = LoadOptions { name: Some(name.into()), ..LoadOptions::default() };
        anyhow::Ok((name, Pipeline::load(&Folder::open(folder)?, &options, manager)?))
    };
    folders.into_iter().map(load).collect()
}

/// A PNG of what `/pipeline?prompt=…` asks for.
fn answer(pipelines: &BTreeMap<&str, Pipeline>, method: &Method, url: &str) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(*method == Method::Get, "{method} is not answered here, GET is");
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let pipeline = pipelines.get(path.trim_start_matches('/'));
    let pipeline = pipeline.ok_or_else(|| anyhow::anyhow!("{path}: there are {:?}", pipelines.keys()))?;
    let prompt = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "prompt");
    let prompt = prompt.map(|(_, prompt)| prompt.into_owned()).unwrap_or_default();
    let request = Request { prompt, guidance: 3.0, width: 64, height: 64, ..Request::default() };
    let image = pipeline.generate(&request, |_| {})?;
    let mut png = Cursor::new(Vec::new());
    let rgb8 = image.rgb8()?;
    image::write_buffer_with_format(
        &mut png,
        &rgb8,
        request.width,
        request.height,
        image::ExtendedColorType::Rgb8,
        image::ImageFormat::Png,
    )?;
    Ok(png.into_inner())
}
