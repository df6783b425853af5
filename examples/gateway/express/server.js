// A payments API that knows nothing of idempotency keys: each POST charges the card.
//
//   npm install && npm start
//   semel gateway --upstream http://127.0.0.1:3000 --store sqlite:///keys.db
const express = require("express");
const fs = require("node:fs");

const ledger = process.env.LEDGER ?? "charges.jsonl"; // a line each charge
const slowness = Number(process.env.CARD_MS ?? 0); // how long the card network takes to confirm

const charges = () =>
  fs.existsSync(ledger)
    ? fs.readFileSync(ledger, "utf8").trim().split("\n").filter(Boolean).map(JSON.parse)
    : [];

const app = express();
app.use(express.json());

app.post("/charges", async (req, res) => {
  const { order, amount } = req.body ?? {};
  if (!order || !Number.isInteger(amount) || amount <= 0) {
    return res.status(422).json({ error: "order and a positive amount are needed" });
  }
  const charge = { id: charges().length + 1, order, amount };
  fs.appendFileSync(ledger, JSON.stringify(charge) + "\n");
  await new Promise((confirmed) => setTimeout(confirmed, slowness));
  res.status(201).location(`/charges/${charge.id}`).json(charge);
});

app.get("/charges", (req, res) => res.json(charges()));
app.get("/charges/count", (req, res) => res.json(charges().length));

app.listen(Number(process.env.PORT ?? 3000), "127.0.0.1");
