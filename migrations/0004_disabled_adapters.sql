-- Adapters that their owners have switched off: nodes refuse them and let go of their bytes.

set lock_timeout = '5s';

alter table adapter add column disabled_at timestamptz;
grant update (disabled_at) on adapter to lk_app;
