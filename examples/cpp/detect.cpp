// Detect objects without Python: a package of AOTInductor, and the operators that it calls.
//
//   detect libtokendetr_ops.so detector.pt2 HEIGHT WIDTH image.ppm
//
// HEIGHT and WIDTH are the canvas that the package was exported for (`tokendetr export --format aoti --size ...`). The
// image is a binary PPM (P6) no larger than that. Prints one line per detection: class, score and box in pixels.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

namespace {

// Reads a PPM as float [3, H, W], values 0..255, red first.
torch::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  file >> magic >> width >> height >> largest;
  if (!file || magic != "P6" || largest != 255) throw std::runtime_error(path + " is not a binary PPM of 8 bits");
  file.get();
  std::vector<uint8_t> pixels(static_cast<size_t>(3 * width * height));
  file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()));
  if (!file) throw std::runtime_error(path + " ends too early");
  const auto image_HWC = torch::from_blob(pixels.data(), {height, width, 3}, torch::kUInt8);
  return image_HWC.permute({2, 0, 1}).to(torch::kFloat32);
}

void run(char** arguments) {
  const std::string operators = arguments[1], package = arguments[2];
  const int64_t height = std::atoll(arguments[3]), width = std::atoll(arguments[4]);
  // The library registers its operators with libtorch when it is loaded; it needs no Python.
  if (dlopen(operators.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader detector(package);

  const torch::Tensor image = read_ppm(arguments[5]);
  if (image.size(1) > height || image.size(2) > width) throw std::runtime_error("the image is larger than the canvas");
  torch::Tensor canvas = torch::full({1, 3, height, width}, 127.0f);
  canvas[0].slice(1, 0, image.size(1)).slice(2, 0, image.size(2)).copy_(image);
  const torch::Tensor sizes = torch::tensor({{image.size(1), image.size(2)}}, torch::kInt64);

  const torch::InferenceMode no_gradients;
  const std::vector<torch::Tensor> found = detector.run({canvas, sizes});
  const auto boxes = found[0][0], scores = found[1][0], labels = found[2][0];
  const int64_t count = found[3][0].item<int64_t>();
  std::cout.precision(9);
  for (int64_t i = 0; i < count; ++i) {
    std::cout << labels[i].item<int64_t>() << ' ' << scores[i].item<float>();
    for (int64_t k = 0; k < 4; ++k) std::cout << ' ' << boxes[i][k].item<float>();
    std::cout << '\n';
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) {
    std::cerr << "usage: detect libtokendetr_ops.so detector.pt2 HEIGHT WIDTH image.ppm\n";
    return 2;
  }
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
