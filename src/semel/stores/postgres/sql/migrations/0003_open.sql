-- Null: the session has its own bound for a transaction that stands still, and none has to be set
-- with each of them.
create or replace function semel_open(_lock bigint, _key bytea, _idle text)
returns bigint language plpgsql as $$
declare _set text;
begin
    if not pg_try_advisory_xact_lock(_lock) then
        return null;
    end if;
    if exists (select 1 from semel_record r where r.key = _key) then
        return 0;
    end if;
    if _idle is not null then
        _set := set_config('idle_in_transaction_session_timeout', _idle, true);
    end if;
    return nextval('semel_token');
end $$;
