"""The client of a server over HTTP: `sluice.Client` and `sluice.AsyncClient`. Needs the extra `client`; knows neither package."""
