// node upload.cjs ENDPOINT FILE CHUNK_SIZE MEMORY: uploads a file, or goes on with an upload of it.
const fs = require("fs");
const tus = require("tus-js-client");

const [endpoint, path, chunkSize, memory] = process.argv.slice(2);
const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint,
  uploadSize: fs.statSync(path).size,
  chunkSize: Number(chunkSize),
  retryDelays: Array(200).fill(20),
  metadata: { filename: "holiday.jpg" },
  urlStorage: new tus.FileUrlStorage(memory),
  fingerprint: async () => path,
  onChunkComplete: (_, accepted) => console.log("accepted", accepted),
  onSuccess: () => console.log("url", upload.url),
  onError: (error) => {
    console.error(String(error));
    process.exit(1);
  },
});
upload.findPreviousUploads().then((previous) => {
  if (previous.length) {
    console.log("resumed", previous[0].uploadUrl);
    upload.resumeFromPreviousUpload(previous[0]);
  }
  upload.start();
});
