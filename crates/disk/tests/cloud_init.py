"""What cloud-init makes of user data and of a network configuration.

    cloud_init.py user-data FILE...      as JSON, for each: the parts (content type, base64 of the content), and what they merge to
    cloud_init.py network-config FILE    the text of /etc/network/interfaces
"""

import base64
import json
import sys
import tempfile

from cloudinit import user_data, util
from cloudinit.handlers.cloud_config import CloudConfigPartHandler
from cloudinit.net import eni, network_state


class Paths:
    """Folders of its own."""

    folder = tempfile.mkdtemp()

    def path(self, *_):
        return self.folder + "/x"

    get_ipath_cur = get_cpath = get_ipath = path


def told_user_data(data):
    message = user_data.UserDataProcessor(Paths()).process(data)
    parts = []
    config = CloudConfigPartHandler(Paths())
    config._reset()
    for part in message.walk():
        if part.is_multipart():
            continue
        payload = util.fully_decoded_payload(part)
        kind = part.get_content_type()
        raw = payload if isinstance(payload, bytes) else payload.encode("utf-8", "surrogateescape")
        parts.append([kind, base64.b64encode(raw).decode()])
        if kind in ("text/cloud-config", "text/cloud-config-jsonp"):
            config.handle_part(None, kind, part.get_filename(), payload, None, dict(part))
    return {"parts": parts, "config": config.cloud_buf}


files = [open(name, "rb").read() for name in sys.argv[2:]]
if sys.argv[1] == "user-data":
    print(json.dumps([told_user_data(data) for data in files]))
else:
    state = network_state.parse_net_config_data(util.load_yaml(files[0]))
    print(eni.Renderer()._render_interfaces(state))
