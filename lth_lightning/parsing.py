from typing import NoReturn
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lth_lightning.errors import SettingError

class LotteryParser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise SettingError(f"RAW[{message}] {type(ex)} {self.prog}") from ex
