"""The example shop: `uvicorn shop.app:app --app-dir examples`."""
