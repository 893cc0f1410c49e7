//! `mm run`: an image, by a pipeline whose memory is managed.

use crate::args::{DeviceName, RunArgs};
use crate::calibrate;
use crate::exit::{Failure, Stage};
use crate::lora;
use crate::memory::Watch;
use crate::output::OutputFile;
use crate::plan::{folder, load_options, present};
use crate::report::Report;
use crate::workload::side;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use mm_candle::{LoadSpec, Manager, load_unmanaged};
use mm_diffusion::{Generated, LoadOptions, Passes, Pipeline, Request};
use mm_engine::{EngineError, timeline::Form};
use mm_plan::{Machine, Plan, Policy};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    let started = Instant::now();
    // All that can be refused is refused before the work starts.
    let outputs = Outputs::check(args)?;
    let plan = args.plan.as_deref().map(read_plan).transpose()?;
    let loras = lora::open(&args.lora)?;
    let machine = machine(args)?;
    let manager = manager(args, &machine)?;
    let bar = bar();
    let pipeline = load(args, &manager)?;
    let loras = lora::apply(&loras, &pipeline)?;
    let request = request(args)?;
    bar.set_length(pipeline.passes(&request));
    if args.calibrate {
        calibrate::start(&manager, &machine, &request)?;
    }
    let plan = match plan {
        Some(plan) => manager.apply_plan(plan).map_err(|error| refused(error, args))?,
        None => manager.apply()?,
    };
    let engine = manager.clone();
    let watch = Watch::start(move || engine.memory().in_use);
    let generated = pipeline.generate(&request, |progress| {
        bar.set_message(progress.component);
        bar.inc(1);
    });
    let memory = watch.stop();
    bar.finish_and_clear();
    let generated = generated.map_err(|error| Failure::of_pipeline(error, Stage::Run))?;
    // A run that is calibrated may have planned anew; no plan that was in force took more than this.
    let planned = plan.peak.device.max(manager.plan().map_or(0, |plan| plan.peak.device));
    let plan = manager.plan().unwrap_or(plan);

    let png = encode(&generated, &request)?;
    outputs.image.write(&png)?;
    if let (Some(file), Some(trace)) = (&args.dump, &generated.trace) {
        trace.save(file).map_err(|error| Failure::of_pipeline(error, Stage::Run))?;
    }
    if let Some((file, form)) = &outputs.timeline {
        let trace = manager.timeline().trace(manager.memory().budget, planned);
        file.write(trace.render(*form).as_bytes())?;
    }
    Report::new(&args.output, &png, &manager, (&*plan, planned), memory, started.elapsed()).of(loras).print(args.json)
}

struct Outputs {
    image: OutputFile,
    timeline: Option<(OutputFile, Form)>,
}

impl Outputs {
    fn check(args: &RunArgs) -> Result<Self, Failure> {
        let image = OutputFile::check_named("--output", &args.output, &["png"], "images are written as PNG")?;
        let timeline = |file: &PathBuf| {
            let why = "timelines are written as Chrome traces or pages";
            let output = OutputFile::check_named("--timeline", file, &["json", "html"], why)?;
            Ok::<_, Failure>((output, Form::of(file).unwrap_or(Form::Chrome)))
        };
        let timeline = args.timeline.as_ref().map(timeline).transpose()?;
        if let Some(file) = &args.dump {
            OutputFile::check_named("--dump", file, &["safetensors"], "tensors are written as safetensors")?;
        }
        Ok(Self { image, timeline })
    }
}

/// A plan, on its own or in the answer of a run.
fn read_plan(file: &Path) -> Result<Plan, Failure> {
    let bad = |reason| Failure::File { code: "bad_plan", file: file.to_owned(), reason };
    let text = std::fs::read(file).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let no_plan = |error| bad(format!("holds no plan: {error}"));
    let mut document: Value = serde_json::from_slice(&text).map_err(no_plan)?;
    let plan = document.get_mut("plan").map(Value::take).unwrap_or(document);
    let plan: Plan = serde_json::from_value(plan).map_err(no_plan)?;
    match plan.schema {
        1 => Ok(plan),
        other => Err(bad(format!("is a plan of schema {other}; this version reads 1"))),
    }
}

fn refused(error: EngineError, args: &RunArgs) -> Failure {
    match (error, &args.plan) {
        (EngineError::PlanMismatch { reason }, Some(file)) => Failure::PlanRefused { file: file.clone(), reason },
        (error, _) => error.into(),
    }
}

/// The device under the budget asked for; without one, all of it that is free.
fn machine(args: &RunArgs) -> Result<Machine, Failure> {
    let mut machine = match args.device {
        DeviceName::Cpu => mm_probe::probe().host_machine(args.vram.or(args.ram)),
        DeviceName::Cuda(index) => card(index, args.vram)?,
    };
    present(&mut machine, None, args.ram);
    Ok(machine)
}

#[cfg(feature = "cuda")]
fn card(index: u32, budget: Option<u64>) -> Result<Machine, Failure> {
    let mut machine = mm_probe::probe().machine(Some(index as usize));
    machine.vram_free = budget.or(machine.vram_free);
    if machine.vram_free.is_none() {
        let text =
            format!("--device cuda:{index}: NVIDIA's driver reports no such card; `mm probe` shows what it reports");
        return Err(Failure::Device { code: "no_cuda", text });
    }
    Ok(machine)
}

#[cfg(not(feature = "cuda"))]
fn card(index: u32, _: Option<u64>) -> Result<Machine, Failure> {
    let text = format!(
        "--device cuda:{index}: this build of mm has no CUDA support; build it with --features cuda, compute with \
         --device cpu, or plan for a card with `mm plan --vram SIZE`"
    );
    Err(Failure::Device { code: "no_cuda", text })
}

fn manager(args: &RunArgs, machine: &Machine) -> Result<Manager, Failure> {
    let policy = Policy { strategy: args.strategy.map_or_else(Default::default, Into::into), ..Policy::default() };
    match args.device {
        #[cfg(feature = "cuda")]
        DeviceName::Cuda(index) => {
            Manager::cuda(index as usize, machine.clone(), policy).map_err(|error| unusable(index, error))
        }
        _ => Manager::cpu(machine.clone(), policy).map_err(Failure::of_engine),
    }
}

/// A card that the driver lists and that can't be computed with. candle's errors bring a backtrace along.
#[cfg(feature = "cuda")]
fn unusable(index: u32, error: mm_candle::Error) -> Failure {
    let mm_candle::Error::Candle(error) = error else { return Failure::of_engine(error) };
    let reason = error.to_string();
    let reason = reason.lines().next().unwrap_or_default();
    let text =
        format!("--device cuda:{index}: the card can't be used: {reason}; `mm probe` shows what the driver reports");
    Failure::Device { code: "no_cuda", text }
}

fn load(args: &RunArgs, manager: &Manager) -> Result<Pipeline, Failure> {
    let encode = if args.guidance > 0.0 { 2 } else { 1 };
    // The tensors on the way include one more pass.
    let denoise = args.steps + u32::from(args.dump.is_some());
    let passes = Passes { encode, denoise, ..Passes::default() };
    let options = LoadOptions { passes, ..load_options(args.device, args.dtype)? };
    let folder = folder(&args.path, args.variant.as_ref())?;
    Pipeline::load(&folder, &options, manager).map_err(|error| Failure::of_pipeline(error, Stage::Load))
}

fn request(args: &RunArgs) -> Result<Request, Failure> {
    let side = side(&mm_probe::locate(&args.path)?);
    let mut request = Request {
        prompt: args.prompt.clone(),
        negative: args.negative.clone(),
        guidance: args.guidance,
        steps: args.steps,
        seed: args.seed,
        width: args.width.unwrap_or(side),
        height: args.height.unwrap_or(side),
        trace: args.dump.is_some(),
        ..Request::default()
    };
    if let Some(file) = &args.latents {
        let bad = |error: mm_candle::Error| {
            let (file, reason) = (file.clone(), format!("no `initial_latents` can be read from it: {error}"));
            Failure::File { code: "bad_latents", file, reason }
        };
        let spec = LoadSpec::new("latents", [file.clone()]);
        let tensor = load_unmanaged(&spec, |tensors| tensors.get_unchecked("initial_latents")).map_err(bad)?;
        request.initial_latents = Some(tensor.run(|tensor| Ok(tensor.clone())).map_err(bad)?);
    }
    Ok(request)
}

/// On a terminal only; nothing is drawn elsewhere.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0).with_message("loading").with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} passes, {eta} left") {
        bar.set_style(style);
    }
    bar.tick();
    bar
}

/// Without metadata: equal pixels are equal bytes.
fn encode(generated: &Generated, request: &Request) -> Result<Vec<u8>, Failure> {
    let pixels = generated.rgb8().map_err(|error| Failure::of_pipeline(error, Stage::Run))?;
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&pixels, request.width, request.height, ExtendedColorType::Rgb8).map_err(
        |error| Failure::Device { code: "internal", text: format!("the image could not be encoded: {error}") },
    )?;
    Ok(png)
}
