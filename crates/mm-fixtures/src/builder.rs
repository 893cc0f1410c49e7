//! Names tensors as a model's code does: modules within modules, lists of blocks, layers.

use crate::{Init, Tensor};
use safetensors::Dtype;

/// Collects the tensors of a model in the order in which its code makes them.
pub(crate) struct Builder {
    dtype: Dtype,
    path: String,
    block: Option<(String, usize)>,
    tensors: Vec<Tensor>,
}

impl Builder {
    pub(crate) fn new(dtype: Dtype) -> Builder {
        Builder { dtype, path: String::new(), block: None, tensors: Vec::new() }
    }

    pub(crate) fn finish(self) -> Vec<Tensor> {
        self.tensors
    }

    /// A module; `name` may be a path.
    pub(crate) fn at(&mut self, name: &str, build: impl FnOnce(&mut Builder)) {
        let length = self.path.len();
        self.path.push_str(name);
        self.path.push('.');
        build(self);
        self.path.truncate(length);
    }

    /// A list of blocks: what is built in an entry belongs to it, or to an entry of a stack within.
    pub(crate) fn stack(&mut self, name: &str, count: usize, mut build: impl FnMut(&mut Builder, usize)) {
        for index in 0..count {
            let outer = self.block.replace((format!("{}{name}", self.path), index));
            self.at(&format!("{name}.{index}"), |b| build(b, index));
            self.block = outer;
        }
    }

    /// One tensor.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], init: Init) {
        self.tensors.push(Tensor {
            name: format!("{}{name}", self.path),
            shape: shape.to_vec(),
            dtype: self.dtype,
            block: self.block.clone(),
            loaded: true,
            init,
        });
    }

    /// A tensor that lies in the file though no model loads it.
    pub(crate) fn stray(&mut self, name: &str, shape: &[usize], dtype: Option<Dtype>) {
        let init = if dtype == Some(Dtype::I64) { Init::Count } else { Init::Normal };
        self.tensor(name, shape, init);
        if let Some(tensor) = self.tensors.last_mut() {
            tensor.dtype = dtype.unwrap_or(tensor.dtype);
            tensor.loaded = false;
        }
    }

    pub(crate) fn param(&mut self, name: &str, shape: &[usize]) {
        self.tensor(name, shape, Init::Normal);
    }

    pub(crate) fn embedding(&mut self, name: &str, entries: usize, dim: usize) {
        self.at(name, |b| b.param("weight", &[entries, dim]));
    }

    pub(crate) fn linear(&mut self, name: &str, input: usize, output: usize) {
        self.conv(name, input, output, &[]);
    }

    /// A linear layer without bias.
    pub(crate) fn matrix(&mut self, name: &str, input: usize, output: usize) {
        self.at(name, |b| b.param("weight", &[output, input]));
    }

    pub(crate) fn conv(&mut self, name: &str, input: usize, output: usize, kernel: &[usize]) {
        self.at(name, |b| {
            b.param("weight", &[&[output, input], kernel].concat());
            b.param("bias", &[output]);
        });
    }

    /// A norm with weight and bias.
    pub(crate) fn norm(&mut self, name: &str, dim: usize) {
        self.at(name, |b| {
            b.tensor("weight", &[dim], Init::Ones);
            b.param("bias", &[dim]);
        });
    }

    /// A norm with a weight alone.
    pub(crate) fn rms(&mut self, name: &str, dim: usize) {
        self.at(name, |b| b.tensor("weight", &[dim], Init::Ones));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_belongs_to_the_innermost_stack_around_it() {
        let mut b = Builder::new(Dtype::F32);
        b.stack("outer", 2, |b, _| {
            b.param("before", &[1]);
            b.at("m", |b| b.stack("inner", 1, |b, _| b.param("w", &[1])));
            b.param("after", &[1]);
        });
        b.param("rest", &[1]);
        let blocks: Vec<_> = b.finish().into_iter().map(|t| (t.name, t.block)).collect();
        let entry = |name: &str, stack: &str, index| (name.to_owned(), Some((stack.to_owned(), index)));
        assert_eq!(blocks[0], entry("outer.0.before", "outer", 0));
        assert_eq!(blocks[1], entry("outer.0.m.inner.0.w", "outer.0.m.inner", 0));
        assert_eq!(blocks[2], entry("outer.0.after", "outer", 0));
        assert_eq!(blocks[5], entry("outer.1.after", "outer", 1));
        assert_eq!(blocks[6], ("rest".to_owned(), None));
    }
}
