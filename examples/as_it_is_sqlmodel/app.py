"""FastAPI with SQLModel, as its template has it: `SessionDep`, `CurrentUser`, a bearer token.

DATABASE_URL=postgresql+psycopg://user@host/shop uvicorn app:app
"""

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from itsdangerous import BadSignature, URLSafeTimedSerializer
from sqlmodel import Field, Session, SQLModel, create_engine, select

from semel import Idempotency
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.fastapi import init_app, joined

engine = create_engine(os.environ["DATABASE_URL"])
tokens = URLSafeTimedSerializer(os.environ.get("SECRET_KEY", "change me"))
oauth2 = OAuth2PasswordBearer("login")


class User(SQLModel, table=True):
    __tablename__ = "users"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    password: str
    balance: int = 1000


class ItemCreate(SQLModel):
    title: str = Field(min_length=1, max_length=100)


class Item(ItemCreate, table=True):
    __tablename__ = "items"
    id: int | None = Field(default=None, primary_key=True)
    owner_id: int = Field(foreign_key="users.id")


class TransferCreate(SQLModel):
    to: str
    amount: int = Field(gt=0)


class Transfer(SQLModel, table=True):
    __tablename__ = "transfers"
    id: int | None = Field(default=None, primary_key=True)
    sender_id: int = Field(foreign_key="users.id")
    receiver_id: int = Field(foreign_key="users.id")
    amount: int


def hashed(password: str) -> str:
    return hashlib.scrypt(password.encode(), salt=b"of the example", n=2**12, r=8, p=1).hex()


def get_db() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


# --- Semel: sessions of requests with a key are in the transaction of the key ---
idempotency = Idempotency(SQLAlchemyStore(engine), routes={"POST /login": None})
get_db = joined(idempotency, get_db)
# --- that was it, with init_app below ---

SessionDep = Annotated[Session, Depends(get_db)]


def get_current_user(session: SessionDep, token: Annotated[str, Depends(oauth2)]) -> User:
    try:
        user = session.get(User, tokens.loads(token, max_age=3600))
    except BadSignature:
        user = None
    if user is None:
        raise HTTPException(401, "Could not validate credentials")
    return user


CurrentUser = Annotated[User, Depends(get_current_user)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        if session.exec(select(User)).first() is None:
            session.add_all(User(name=n, password=hashed("secret")) for n in ("alice", "bob"))
            session.commit()
    yield


app = FastAPI(lifespan=lifespan)
init_app(app, idempotency, caller=get_current_user)  # Semel


@app.post("/login")
def login(session: SessionDep, form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict:
    user = session.exec(select(User).where(User.name == form.username)).first()
    if user is None or user.password != hashed(form.password):
        raise HTTPException(400, "Incorrect name or password")
    return {"access_token": tokens.dumps(user.id), "token_type": "bearer"}


@app.get("/items")
def read_items(session: SessionDep, user: CurrentUser) -> list[Item]:
    return list(session.exec(select(Item).where(Item.owner_id == user.id).order_by(Item.id)))


@app.post("/items", status_code=201)
def create_item(session: SessionDep, user: CurrentUser, wanted: ItemCreate) -> Item:
    item = Item.model_validate(wanted, update={"owner_id": user.id})
    session.add(item)
    session.commit()
    session.refresh(item)
    return item


@app.post("/transfers", status_code=201)
def create_transfer(session: SessionDep, user: CurrentUser, wanted: TransferCreate) -> Transfer:
    receiver = session.exec(select(User).where(User.name == wanted.to)).first()
    if receiver is None:
        raise HTTPException(404, "No such user")
    transfer = Transfer(sender_id=user.id, receiver_id=receiver.id, amount=wanted.amount)
    session.add(transfer)
    session.flush()
    user.balance -= wanted.amount
    receiver.balance += wanted.amount
    if user.balance < 0:
        raise HTTPException(402, f"You have {user.balance + wanted.amount} only")
    session.commit()
    session.refresh(transfer)
    return transfer
