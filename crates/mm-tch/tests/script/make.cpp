// Makes net.pt, for tests: a TorchScript module with parameters, one of them under two names, and a buffer. With LIBTORCH
// set, in this folder:
// c++ -std=c++17 make.cpp -I$LIBTORCH/include -I$LIBTORCH/include/torch/csrc/api/include -L$LIBTORCH/lib -ltorch_cpu -lc10 -o make && ./make
#include <torch/script.h>

using torch::jit::Module;

static at::Tensor values(at::IntArrayRef shape, int64_t seed) {
  auto n = at::arange(c10::multiply_integers(shape), at::kLong);
  return ((n * 7919 + seed * 104729) % 2003 / 5000.0 - 0.2).to(at::kFloat).reshape(shape);
}

static Module linear(Module &parent, const char *name, int64_t from, int64_t to, int64_t seed) {
  Module layer("__torch__." + std::string(name), parent._ivalue()->compilation_unit());
  layer.register_parameter("weight", values({to, from}, seed), false);
  layer.register_parameter("bias", values({to}, seed + 1), false);
  layer.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight, self.bias)\n");
  parent.register_module(name, layer);
  return layer;
}

int main() {
  Module net("__torch__.Net");
  linear(net, "up", 16, 256, 1);
  linear(net, "down", 256, 16, 3);
  auto shift = values({16}, 5);
  net.register_parameter("shift", shift, false);
  net.register_parameter("same_shift", shift, false);
  net.register_buffer("scale", values({16}, 6) + 1);
  net.define("def forward(self, x: Tensor) -> Tensor:\n"
             "    return self.down.forward(torch.silu(self.up.forward(x))) * self.scale + self.shift + self.same_shift\n");
  net.save("net.pt");
}
