"""Kaggle's own client with an acted server: its words, its exit codes, its checks; nothing is sent.

Run as `python stand_in_kaggle.py ARGUMENTS of the client`. The server's state is the JSON file in
$STAND_IN: served (names of the data set's files, or null), pending (looks until what was uploaded
is served), fails (whether it comes to nothing instead), invalid (sources by kind that it drops),
error (what it says to a push), token (false: it knows nobody), statuses (of kernels, in turn);
it adds uploaded, pushed, and calls (what was asked of it).
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("KAGGLE_USERNAME", "me")
os.environ.setdefault("KAGGLE_KEY", "0" * 32)

import requests
from kaggle import cli
from kaggle.api import kaggle_api_extended as extended
from kagglesdk import kaggle_http_client
from kagglesdk.datasets.types.dataset_api_service import ApiDatasetFile
from kagglesdk.datasets.types.dataset_enums import DatabundleVersionStatus
from kagglesdk.kernels.types.kernels_enums import KernelWorkerStatus

STATE = Path(os.environ["STAND_IN"])
state = json.loads(STATE.read_text())


def refuse(code, reason):
    response = requests.Response()
    response.status_code, response.reason, response.url = code, reason, "https://kaggle/api"
    response.raise_for_status()


def settle():
    """One look at the data set: what was uploaded is served after `pending` looks."""
    if state.get("uploaded") and not state.get("pending") and not state.get("fails"):
        state["served"] = state.pop("uploaded")
    elif state.get("pending"):
        state["pending"] -= 1


def call(self, service, name, request, response_type):
    name = name.removeprefix("Api")  # as clients before 2.0 put it
    state.setdefault("calls", []).append(name)
    answer = response_type()
    if not state.get("token", True):
        refuse(401, "Unauthorized")
    if name in ("GetDatasetStatus", "ListDatasetFiles"):
        if name == "GetDatasetStatus":
            settle()
        if state.get("served") is None and not state.get("uploaded"):
            refuse(404, "Not Found")
    if name == "GetDatasetStatus":
        ready = not state.get("uploaded")
        answer.status = (
            DatabundleVersionStatus.READY if ready else DatabundleVersionStatus.BLOBS_RECEIVED
        )
        if state.get("fails") and not ready:
            answer.status = DatabundleVersionStatus.FAILED
    elif name == "ListDatasetFiles":
        answer.dataset_files = [ApiDatasetFile() for _ in state.get("served") or []]
        for file, path in zip(answer.dataset_files, state.get("served") or []):
            file.name, file.total_bytes = path, 1
    elif name == "StartBlobUpload":
        answer.token, answer.create_url = request.name, "https://kaggle/blob"
    elif name in ("CreateDataset", "CreateDatasetVersion"):
        body = getattr(request, "body", request)
        state["uploaded"] = [file.token for file in body.files]
        answer.status, answer.url = "ok", "https://kaggle/datasets/me/labhelpers"
    elif name == "SaveKernel":
        answer.error = state.get("error", "")
        answer.url, answer.version_number = f"https://kaggle/code/{request.slug}", 1
        for kind in ("dataset", "competition", "kernel"):
            given = getattr(request, f"{kind}_data_sources")
            dropped = [source for source in given if source in state.get("invalid", [])]
            setattr(answer, f"invalid_{kind}_sources", dropped)
        if not answer.error:
            state.setdefault("pushed", []).append(request.slug)
    elif name == "GetKernelSessionStatus":
        answer.status = KernelWorkerStatus[state["statuses"].pop(0)]
    else:
        raise AssertionError(f"{service}.{name} was not expected")
    return answer


kaggle_http_client.KaggleHttpClient.call = call
extended.KaggleApi.upload_complete = lambda *_, **__: extended.ResumableUploadResult.COMPLETE
try:
    sys.argv[0] = "kaggle"
    cli.main()
finally:
    STATE.write_text(json.dumps(state))
