// The node tokendetr::MSDeformAttn for ONNX Runtime, by its C interface, which stays the same from release to release.
#include <onnxruntime_c_api.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../ms_deform_attn/cpu/node.h"

namespace tokendetr {
namespace {

constexpr size_t kInputs = 4;  // value, reference points, offsets, logits
constexpr char kDomain[] = "tokendetr", kName[] = "MSDeformAttn", kAttribute[] = "level_shapes";

// Throws what a call of ONNX Runtime reports.
void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string text = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(text);
}

// Runs `work`; what it throws becomes a status, as exceptions must not cross the interface.
template <class Work>
OrtStatus* guarded(const OrtApi& api, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

std::vector<int64_t> shape_of(const OrtApi& api, const OrtValue* tensor) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(tensor, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  size_t dimensions = 0;
  check(api, api.GetDimensionsCount(info, &dimensions));
  std::vector<int64_t> shape(dimensions);
  check(api, api.GetDimensions(info, shape.data(), dimensions));
  return shape;
}

void* data_of(const OrtApi& api, const OrtValue* tensor) {
  void* data = nullptr;
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(tensor), &data));
  return data;
}

// Runs all heads on the threads of the session, and throws the first exception of one.
void run(const OrtApi& api, OrtKernelContext* context, const NodeCall& call) {
  struct Task {
    const NodeCall& call;
    std::mutex mutex;
    std::exception_ptr failure;
  } task{call, {}, nullptr};
  const auto compute = [](void* data, size_t image_head) {
    Task& task = *static_cast<Task*>(data);
    try {
      task.call.compute(static_cast<int64_t>(image_head));
    } catch (...) {
      const std::lock_guard<std::mutex> lock(task.mutex);
      if (!task.failure) task.failure = std::current_exception();
    }
  };
  check(api, api.KernelContext_ParallelFor(context, compute, static_cast<size_t>(call.image_heads()), 0, &task));
  if (task.failure) std::rethrow_exception(task.failure);
}

// A node of a loaded model.
class Kernel {
 public:
  Kernel(const OrtApi& api, const OrtKernelInfo* info) : api_(api) {
    size_t numbers = 0;
    check(api, api.KernelInfoGetAttributeArray_int64(info, kAttribute, nullptr, &numbers));
    level_shapes_.resize(numbers);
    check(api, api.KernelInfoGetAttributeArray_int64(info, kAttribute, level_shapes_.data(), &numbers));
  }

  OrtStatus* compute(OrtKernelContext* context) const noexcept {
    return guarded(api_, [&] {
      const OrtValue* inputs[kInputs];
      std::vector<int64_t> shapes[kInputs];
      for (size_t i = 0; i < kInputs; ++i) {
        check(api_, api_.KernelContext_GetInput(context, i, &inputs[i]));
        shapes[i] = shape_of(api_, inputs[i]);
      }
      const Problem p = node_problem(shapes[0], shapes[1], shapes[2], level_shapes_);
      const int64_t shape[] = {p.batch, p.queries, p.heads * p.width};
      OrtValue* output = nullptr;
      check(api_, api_.KernelContext_GetOutput(context, 0, shape, 3, &output));
      run(api_, context,
          NodeCall(p, data_of(api_, inputs[0]), data_of(api_, inputs[1]), static_cast<int>(shapes[1][3]),
                   data_of(api_, inputs[2]), data_of(api_, inputs[3]), data_of(api_, output)));
    });
  }

 private:
  const OrtApi& api_;
  std::vector<int64_t> level_shapes_;
};

// What ONNX Runtime asks about the operator.
OrtCustomOp make_operator() {
  OrtCustomOp op{};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.GetInputTypeCount = [](const OrtCustomOp*) { return kInputs; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputType = op.GetInputType;
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetOutputCharacteristic = op.GetInputCharacteristic;
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, [&] { *kernel = new Kernel(*api, info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return static_cast<const Kernel*>(kernel)->compute(context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace
}  // namespace tokendetr

// What ONNX Runtime looks for in a library of custom operators.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  static const OrtCustomOp op = tokendetr::make_operator();
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {  // an older runtime: nothing of this version can report it
    const OrtApi* oldest = base->GetApi(1);
    return oldest->CreateStatus(ORT_FAIL, "the library was built with headers of a newer ONNX Runtime than this one");
  }
  return tokendetr::guarded(*api, [&] {
    OrtCustomOpDomain* domain = nullptr;  // the session options keep it; it lives as long as the process
    tokendetr::check(*api, api->CreateCustomOpDomain(tokendetr::kDomain, &domain));
    tokendetr::check(*api, api->CustomOpDomain_Add(domain, &op));
    tokendetr::check(*api, api->AddCustomOpDomain(options, domain));
  });
}
