"""The model that MLServer serves, in its environment: `text_input` comes back as `text_output`."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Echo(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (tensor,) = payload.inputs
        said = ResponseOutput(name="text_output", shape=tensor.shape, datatype="BYTES", data=tensor.data)
        return InferenceResponse(model_name=self.name, outputs=[said])
