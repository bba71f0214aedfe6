# SPDX-License-Identifier: Apache-2.0
"""What a hospital's viewer shows: ``python -m benchmarks.viewer --ohif DIST --dicom FOLDER --out SCREENSHOTS``.

Orthanc keeps the objects of a folder, OHIF (the folder ``dist`` of the package ``@ohif/app``) reads them by DICOMweb,
and Chromium draws each series; Orthanc's own rendering is saved beside it. Everything runs in a network namespace of
its own, so that no server can be reached from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["main"]

_ORTHANC, _VIEWER = 18042, 18080
_INSIDE = "MEDCF_VIEWER_INSIDE"  # set in the process that runs in the namespace
_BROWSER = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
)
_CONFIG = """window.config = {
  routerBasename: '/', customizationService: {}, extensions: [], modes: [], showStudyList: true,
  defaultDataSourceName: 'orthanc',
  investigationalUseDialog: { option: 'never' },
  dataSources: [{ namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'orthanc',
    configuration: { friendlyName: 'Orthanc', name: 'Orthanc', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      wadoUriRoot: '/wado', qidoSupportsIncludeField: false, imageRendering: 'wadors', thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      bulkDataURI: { enabled: true } } }] };"""


def main(arguments: list[str] | None = None) -> None:
    """Start the servers, show every series, and stop them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.viewer", description=__doc__)
    parser.add_argument("--ohif", type=Path, required=True, help="folder dist of the package @ohif/app")
    parser.add_argument(
        "--dicom", type=Path, required=True, nargs="+", help="folders of DICOM files, of one study each"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--seconds", type=float, default=12, help="to wait for a series to be drawn")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    options = parser.parse_args(arguments)
    if os.environ.get(_INSIDE) is None:
        command = [sys.executable, "-m", "benchmarks.viewer", *(sys.argv[1:] if arguments is None else arguments)]
        inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
        raise SystemExit(subprocess.run(inside, env={**os.environ, _INSIDE: "1"}, check=False).returncode)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        orthanc = _start_orthanc(Path(folder))
        server = ThreadingHTTPServer(("127.0.0.1", _VIEWER), _handler(options.ohif))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            for path in sorted(path for each in options.dicom for path in each.rglob("*.dcm")):
                _request(f"http://127.0.0.1:{_ORTHANC}/instances", path.read_bytes())
            _show(options)
        finally:
            server.shutdown()
            orthanc.terminate()
            orthanc.wait()


def _start_orthanc(folder: Path) -> subprocess.Popen[bytes]:
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": _ORTHANC,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "WadoRoot": "/wado"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([shutil.which("Orthanc") or "Orthanc", str(folder / "orthanc.json")], **quiet)
    for _ in range(100):
        try:
            _request(f"http://127.0.0.1:{_ORTHANC}/system")
            return process
        except OSError:
            time.sleep(0.2)
    process.terminate()
    raise RuntimeError("Orthanc did not start: install orthanc and orthanc-dicomweb.")


def _request(url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        body: bytes = answer.read()
    return body


def _handler(folder: Path) -> Any:
    """Serve OHIF's files, and Orthanc's answers below the same address, so that the browser asks one server."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith(("/dicom-web", "/wado")):
                self._forward()
            elif self.path.split("?")[0] == "/app-config.js":
                self._answer(200, "text/javascript", _CONFIG.encode())
            else:
                if not (folder / self.path.split("?")[0].lstrip("/")).is_file():
                    self.path = "/index.html"  # a page of the application
                super().do_GET()

        def _forward(self) -> None:
            accept = {"Accept": self.headers.get("Accept", "*/*")}
            asked = urllib.request.Request(f"http://127.0.0.1:{_ORTHANC}{self.path}", headers=accept)
            try:
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    self._answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, "text/plain", error.read())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _show(options: argparse.Namespace) -> None:
    """Save what OHIF draws of each series, and what Orthanc renders of its first instance."""
    from playwright.sync_api import sync_playwright

    base = f"http://127.0.0.1:{_ORTHANC}"
    series = [json.loads(_request(f"{base}/series/{name}")) for name in json.loads(_request(f"{base}/series"))]
    studies = {each["ParentStudy"] for each in series}
    uids = {
        name: json.loads(_request(f"{base}/studies/{name}"))["MainDicomTags"]["StudyInstanceUID"] for name in studies
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, headless=True, args=list(_BROWSER))
        for each in sorted(
            series, key=lambda one: (one["ParentStudy"], int(one["MainDicomTags"].get("SeriesNumber", 0)))
        ):
            tags = each["MainDicomTags"]
            name = f"{tags.get('SeriesNumber', '0')}-{tags.get('Modality', '')}-{tags['SeriesInstanceUID'][-6:]}"
            try:
                picture = _request(f"{base}/instances/{each['Instances'][0]}/preview")
                (options.out / f"{name}-orthanc.png").write_bytes(picture)
            except OSError as error:
                sys.stdout.write(f"{name}: Orthanc renders nothing ({error})\n")
            page = browser.new_page(viewport={"width": 1200, "height": 800})
            errors: list[str] = []
            page.on("pageerror", lambda error, seen=errors: seen.append(str(error)))
            study = uids[each["ParentStudy"]]
            address = f"http://127.0.0.1:{_VIEWER}/viewer?StudyInstanceUIDs={study}"
            page.goto(f"{address}&initialSeriesInstanceUID={tags['SeriesInstanceUID']}")
            page.wait_for_timeout(1000 * options.seconds)
            if page.get_by_text("Skip all").count():
                page.get_by_text("Skip all").click()  # a tour for those who are new
                page.wait_for_timeout(1000)
            page.screenshot(path=str(options.out / f"{name}-ohif.png"))
            page.close()
            sys.stdout.write(f"{name}: {tags.get('SeriesDescription', '')!r}, errors of the page: {errors or 'none'}\n")
        browser.close()


if __name__ == "__main__":
    main()
