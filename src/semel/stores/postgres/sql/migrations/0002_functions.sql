-- What each command does. Functions, because their plans are kept with the connection, behind
-- pgbouncer too, and because a transaction can begin, lock and look up in one message. In READ
-- COMMITTED each statement in them sees what was committed when it began. A change gets a new number.

-- The clock that leases and expiries go by; tests put their own in its place.
create function semel_now() returns double precision language sql volatile as
$$ select extract(epoch from clock_timestamp())::double precision $$;

-- A record as it is read, the clock, and whether it was won just now; a null state: there is none.
create type semel_found as (
    key bytea, state smallint, token bigint, owner bytea, attempt integer, fingerprint bytea,
    lease_until double precision, due_at double precision, purge_at double precision,
    answer bytea, reason text, now double precision, won boolean
);

-- Plans are kept: one that was made while the table was small must not scan it when it is large.
create function semel_lookup(_keys bytea[]) returns setof semel_found language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return query select r.key, r.state, r.token, r.owner, r.attempt, r.fingerprint, r.lease_until,
        r.due_at, r.purge_at, r.answer, r.reason, semel_now(), false
    from semel_record r where r.key = any(_keys);
end $$;

-- One row for each claim, in their order.
-- Inserted in the order of the keys, so that no two of these wait for each other in a circle.
create function semel_claim(
    _keys bytea[], _fingerprints bytea[], _leases double precision[], _owners bytea[],
    _requests bytea[]
) returns setof semel_found language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare _won bigint[];
begin
    with won as (
    insert into semel_record (key, state, attempt, owner, fingerprint, lease_until, request)
    select a.k, 1, 1, a.o, a.f, semel_now() + a.l, a.q
    from unnest(_keys, _fingerprints, _leases, _owners, _requests) as a (k, f, l, o, q)
    order by a.k
    on conflict (key) do nothing
    returning token
    ) select array_agg(token) into _won from won;
    return query select r.key, r.state, r.token, r.owner, r.attempt, r.fingerprint, r.lease_until,
        r.due_at, r.purge_at, r.answer, r.reason, semel_now(), r.token = any(_won)
    from unnest(_keys) with ordinality as a (k, n) left join semel_record r on r.key = a.k
    order by a.n;
end $$;

-- Begins an operation whose transaction is its claim. Null: another such transaction holds the key.
-- 0: there is a record. Else the key is ours, under this token. The lock comes before the look: what
-- its last holder committed is seen.
create function semel_open(_lock bigint, _key bytea, _idle text)
returns bigint language plpgsql as $$
declare _set text;
begin
    if not pg_try_advisory_xact_lock(_lock) then
        return null;
    end if;
    if exists (select 1 from semel_record r where r.key = _key) then
        return 0;
    end if;
    -- A process that stands still must not hold the key for ever.
    _set := set_config('idle_in_transaction_session_timeout', _idle, true);  -- no query: cheaper
    return nextval('semel_token');
end $$;

-- Ends it: the record is new, or somebody else's is there, and nothing commits (S1).
create function semel_finish(
    _key bytea, _token bigint, _owner bytea, _fingerprint bytea, _answer bytea,
    _expires double precision, _tombstone double precision
) returns void language plpgsql as $$
declare _now double precision := semel_now();
begin
    insert into semel_record
        (key, token, state, attempt, owner, fingerprint, lease_until, due_at, purge_at, answer)
    values (_key, _token, 2, 1, _owner, _fingerprint, _now, _now + _expires,
        _now + _expires + _tombstone, _answer);
end $$;

-- Ends an operation whose claim is a record: write once, by its holder only (S4, S5), or nothing
-- commits.
create function semel_complete_or_fail(
    _key bytea, _token bigint, _answer bytea, _expires double precision, _tombstone double precision
) returns void language plpgsql as $$
declare _now double precision := semel_now();
begin
    update semel_record set state = 2, request = null, answer = _answer, due_at = _now + _expires,
        purge_at = _now + _expires + _tombstone
    where key = _key and token = _token and state = 1;
    if not found then
        raise exception 'the claim is another''s by now' using errcode = 'SM001';
    end if;
end $$;

-- The same for many at once, each in its own right. Gives the tokens of those that were written.
create function semel_complete(
    _keys bytea[], _tokens bigint[], _answers bytea[], _expires double precision[],
    _tombstones double precision[]
) returns setof bigint language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare _now double precision := semel_now();
begin
    return query update semel_record r set state = 2, request = null, answer = a.answer,
        due_at = _now + a.e, purge_at = _now + a.e + a.b
    from unnest(_keys, _tokens, _answers, _expires, _tombstones) as a (k, t, answer, e, b)
    where r.key = a.k and r.token = a.t and r.state = 1
    returning r.token;
end $$;

-- Compare and delete: a claim that was lost cannot be released (S5).
create function semel_release(_key bytea, _token bigint) returns boolean language plpgsql as $$
begin
    delete from semel_record where key = _key and token = _token and state = 1;
    return found;
end $$;

-- By the holder, or by anybody once the lease has ended.
create function semel_park(_key bytea, _token bigint, _reason text, _lapsed boolean)
returns boolean language plpgsql as $$
begin
    update semel_record set state = 3, reason = _reason
    where key = _key and token = _token and state = 1
      and (not _lapsed or lease_until <= semel_now());
    return found;
end $$;

-- Only while the record holds the token that was seen and is over in the way that was seen. The
-- token is drawn after the old one was read, so it is higher (S5).
create function semel_take_over(
    _key bytea, _token bigint, _fingerprint bytea, _lease double precision, _owner bytea,
    _expired boolean, _request bytea
) returns setof semel_found language plpgsql as $$
declare _now double precision := semel_now(); _won boolean;
begin
    update semel_record set token = nextval('semel_token'), state = 1,
        attempt = case when state = 1 then attempt + 1 else 1 end,
        owner = _owner, fingerprint = _fingerprint, lease_until = _now + _lease,
        due_at = null, purge_at = null, answer = null, reason = null, request = _request
    where key = _key and token = _token
      and case when _expired then (state = 2 and due_at <= _now) or state = 4
               else state = 1 and lease_until <= _now end;
    _won := found;
    if _won and _expired then
        delete from semel_step where key = _key;
    end if;
    return query select r.key, r.state, r.token, r.owner, r.attempt, r.fingerprint, r.lease_until,
        r.due_at, r.purge_at, r.answer, r.reason, semel_now(), _won
    from semel_record r where r.key = _key;
end $$;

-- The token decides, not the time. A row that is being completed this moment is left alone, and not
-- called lost. Gives the tokens that are.
create function semel_renew(_keys bytea[], _tokens bigint[], _lease double precision)
returns setof bigint language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare _until double precision := semel_now() + _lease;
begin
    update semel_record r set lease_until = greatest(r.lease_until, _until)
    from (
        select h.key, h.token from semel_record h join unnest(_keys, _tokens) as a (k, t)
        on h.key = a.k and h.token = a.t where h.state = 1 for update of h skip locked
    ) as held where r.key = held.key and r.token = held.token;
    return query select a.t from unnest(_keys, _tokens) as a (k, t)
    where not exists (
        select 1 from semel_record r where r.key = a.k and r.token = a.t and r.state = 1
    );
end $$;

-- What became of a parked operation: its answer, or (null) nothing, and steps that were begun and
-- never ended did not happen.
create function semel_settle(
    _key bytea, _token bigint, _answer bytea, _expires double precision, _tombstone double precision
) returns boolean language plpgsql as $$
declare _now double precision := semel_now();
begin
    if _answer is not null then
        update semel_record set state = 2, reason = null, request = null, answer = _answer,
            due_at = _now + _expires, purge_at = _now + _expires + _tombstone
        where key = _key and token = _token and state = 3;
        return found;
    end if;
    delete from semel_record where key = _key and token = _token and state = 3;
    if not found then
        return false;
    end if;
    delete from semel_step where key = _key and result is null;
    return true;
end $$;

-- Steps first: none outlives its record into the key's next life. Rows in use are left for the next
-- time. In-flight and parked records have no due_at and are never touched.
create function semel_sweep(_limit integer) returns integer language plpgsql
set enable_seqscan = off as $$
declare _now double precision := semel_now(); _rows integer; _total integer;
begin
    delete from semel_step where ctid in (
        select s.ctid from semel_step s where s.purge_at <= _now and not exists (
            select 1 from semel_record r where r.key = s.key and r.state in (1, 3)
        ) limit _limit for update of s skip locked
    );
    get diagnostics _total = row_count;
    delete from semel_record where ctid in (
        select r.ctid from semel_record r
        where r.due_at <= _now and r.purge_at <= _now and r.state in (2, 4)
          and not exists (select 1 from semel_step s where s.key = r.key)
        order by r.due_at limit _limit for update of r skip locked
    );
    get diagnostics _rows = row_count;
    _total := _total + _rows;
    update semel_record set state = 4, answer = null, due_at = purge_at where ctid in (
        select r.ctid from semel_record r
        where r.due_at <= _now and r.purge_at > _now and r.state = 2
        order by r.due_at limit _limit for update of r skip locked
    );
    get diagnostics _rows = row_count;
    return _total + _rows;
end $$;

create function semel_abandoned(_limit integer, _idle double precision)
returns table (_key bytea, _token bigint, _attempt integer, _request bytea) language plpgsql as $$
begin
    return query select r.key, r.token, r.attempt, r.request from semel_record r
    where r.state = 1 and r.request is not null and r.lease_until <= semel_now() - _idle
    order by r.lease_until limit _limit;
end $$;

-- The first result stays (S10). No row: the claim is another's by now.
create function semel_record_step(
    _key bytea, _token bigint, _name text, _result bytea, _keep double precision
) returns table (_recorded bytea) language plpgsql as $$
begin
    perform 1 from semel_record r where r.key = _key for share;
    if exists (
        select 1 from semel_record r where r.key = _key and not (r.token = _token and r.state = 1)
    ) then
        return;
    end if;
    return query insert into semel_step as s (key, name, result, purge_at)
    values (_key, _name, _result, semel_now() + _keep)
    on conflict (key, name) do update
    set result = coalesce(s.result, excluded.result), purge_at = excluded.purge_at
    returning s.result;
end $$;

create function semel_forget_step(_key bytea, _token bigint, _name text)
returns boolean language plpgsql as $$
begin
    delete from semel_step s where s.key = _key and s.name = _name and s.result is null
    and not exists (
        select 1 from semel_record r where r.key = _key and not (r.token = _token and r.state = 1)
    );
    return found;
end $$;
