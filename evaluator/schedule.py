"""When ticks are due: every so often, or by a crontab line."""

from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from evaluator.config import Config
from evaluator.errors import ConfigurationError


def trigger_of(config: Config) -> BaseTrigger:
    """When ticks are due. Raises ConfigurationError for a cron line that is none."""
    if config.cron is None:
        return IntervalTrigger(seconds=config.every.total_seconds(), timezone=ZoneInfo("UTC"))
    try:
        return CronTrigger.from_crontab(config.cron, timezone=ZoneInfo(config.timezone))
    except ValueError as error:
        raise ConfigurationError(f'cron: "{config.cron}" is not a crontab line: {error}') from error
