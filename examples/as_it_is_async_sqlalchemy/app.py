"""FastAPI with async SQLAlchemy: the session dependency commits in its exit.

DATABASE_URL=postgresql+asyncpg://user@host/cinema uvicorn app:app
"""

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, OAuth2PasswordRequestForm
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from semel import Idempotency
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.fastapi import init_app, joined

engine = create_async_engine(os.environ["DATABASE_URL"], pool_pre_ping=True)
Sessions = async_sessionmaker(engine, expire_on_commit=False)
SEATS = 5


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class User(Base):
    __tablename__ = "users"
    name: Mapped[str] = mapped_column(unique=True)
    password: Mapped[str]


class Token(Base):
    __tablename__ = "tokens"
    value: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))


class Booking(Base):
    __tablename__ = "bookings"
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    film: Mapped[str]
    seats: Mapped[int]


class BookingIn(BaseModel):
    film: str = Field(min_length=1)
    seats: int = Field(default=1, gt=0)


class BookingOut(BookingIn):
    model_config = ConfigDict(from_attributes=True)
    id: int


class SoldOut(Exception):
    """The film has no seats left."""


def hashed(password: str) -> str:
    return hashlib.scrypt(password.encode(), salt=b"of the example", n=2**12, r=8, p=1).hex()


async def get_session() -> AsyncIterator[AsyncSession]:
    async with Sessions() as session:
        try:
            yield session
            await session.commit()
        except BaseException:
            await session.rollback()
            raise


# --- Semel: sessions of requests with a key are in the transaction of the key ---
idempotency = Idempotency(SQLAlchemyStore(engine), routes={"POST /login": None})
get_session = joined(idempotency, get_session)
# --- that was it, with init_app and CORS's two lists below ---

# Its exit before the response: who has logged in may ask at once.
Db = Annotated[AsyncSession, Depends(get_session, scope="function")]


async def current_user(
    db: Db, given: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]
) -> User:
    query = select(User).join(Token, Token.user_id == User.id)
    user = await db.scalar(query.where(Token.value == given.credentials))
    if user is None:
        raise HTTPException(401, "Log in again")
    return user


Me = Annotated[User, Depends(current_user)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with Sessions.begin() as session:
        if await session.scalar(select(User)) is None:
            session.add_all(User(name=n, password=hashed("secret")) for n in ("alice", "bob"))
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(
    CORSMiddleware,
    allow_origins=["https://cinema.example"],
    allow_methods=["*"],
    allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],  # the last one for Semel
    expose_headers=["Idempotent-Replayed", "Retry-After"],  # Semel
)
init_app(app, idempotency, caller=current_user)  # Semel


@app.exception_handler(SoldOut)
async def sold_out(request: Request, error: SoldOut) -> JSONResponse:
    return JSONResponse({"error": "sold out", "film": str(error)}, 410)


@app.post("/login")
async def login(db: Db, form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, str]:
    user = await db.scalar(select(User).where(User.name == form.username))
    if user is None or user.password != hashed(form.password):
        raise HTTPException(400, "Incorrect name or password")
    token = Token(value=secrets.token_urlsafe(), user_id=user.id)
    db.add(token)
    return {"access_token": token.value, "token_type": "bearer"}


@app.get("/bookings")
async def bookings(db: Db, me: Me) -> list[BookingOut]:
    found = await db.scalars(select(Booking).where(Booking.user_id == me.id).order_by(Booking.id))
    return [BookingOut.model_validate(booking) for booking in found]


@app.post("/bookings", status_code=201)
async def book(wanted: BookingIn, db: Db, me: Me) -> BookingOut:
    booking = Booking(user_id=me.id, **wanted.model_dump())
    db.add(booking)
    await db.flush()
    taken = await db.scalar(select(func.sum(Booking.seats)).where(Booking.film == wanted.film))
    if (taken or 0) > SEATS:
        raise SoldOut(wanted.film)
    return BookingOut.model_validate(booking)
