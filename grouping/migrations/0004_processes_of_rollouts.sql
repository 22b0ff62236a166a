-- A process id means something on one machine, in one container, only: a rollout's start names the whole of it.

ALTER TABLE rollout_starts ADD COLUMN process VARCHAR;
